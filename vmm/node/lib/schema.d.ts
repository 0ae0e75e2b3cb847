// Written by scripts/types.js out of docs/serve.schema.json.

/** A machine. Everything but the name has a default. */
export type MachineSpec = {
  /** More words for the kernel's command line. */
  command_line?: string
  /** Number of vCPUs. */
  cpus?: number
  /** A file that keeps the guest's changes of its root file system; made when missing. Without one they vanish with the machine. */
  disk?: string | null
  /** The root image of the store. */
  image?: string
  /** Another kernel than the store's. */
  kernel?: string | null
  /** Bytes of RAM, whole pages; the host gives it as it is used. */
  memory?: number
  /** Its name: letters, digits, `.`, `_` and `-`, at most 64. */
  name?: string
  /** Folders below which shares may be added while the machine runs. */
  share_roots?: string[]
  /** Folders that the guest sees from the start. */
  shares?: ShareSpec[]
  /** Milliseconds without a process after which the machine is suspended; absent: never. */
  suspend_after_ms?: number | null
}

/** A folder of the host's that appears in the guest. */
export type ShareSpec = {
  /** Where it appears: an absolute path in the guest. */
  guest: string
  /** The folder, an absolute path. */
  host: string
  /** The guest may only read. */
  read_only?: boolean
}

/** A machine as it is. */
export type MachineStatus = {
  /** Number of vCPUs. */
  cpus: number
  /** How often it was started. */
  generation: number
  /** The root image. */
  image: string
  /** Bytes of RAM. */
  memory: number
  /** Its name. */
  name: string
  /** Commands that run now; of those in the background, the ones that somebody is attached to. */
  processes: number
  /** What it shares. */
  shares: ShareSpec[]
  /** Its state. */
  state: MachineState
  /** The worker's process on the host, if it has one. */
  worker?: number | null
}

/** A machine's state. */
export type MachineState =
  /** Not started yet, or ended; the next command starts it. */
  | "idle"
  /** On its way. */
  | "starting"
  /** It takes commands. */
  | "running"
  /** Its vCPUs stand still; the next command resumes it. */
  | "suspended"

/** What happens to a machine. */
export type MachineEvent =
  /** A start has begun; the machine's generation counts its starts. */
  | {
    /** From 1 on. */
    generation: number
    kind: "starting"
  }
  /** The start has come this far: `confined`, `booting`, `connected`. */
  | {
    kind: "progress"
    /** How far. */
    step: string
  }
  /** Commands are taken. */
  | {
    kind: "ready"
    /** What did not work but does not stand in the way. */
    warnings: string[]
  }
  /** Its vCPUs stand still until it is used again. */
  | {
    kind: "suspended"
  }
  /** They run again. */
  | {
    kind: "resumed"
  }
  /** The host could not do what the guest asked of its disk. */
  | {
    kind: "disk-failed"
    /** Why. */
    message: string
  }
  /** The guest's kernel killed a process because memory was used up: its session's, or the machine's. */
  | {
    /** Its name, at most 15 characters. */
    command: string
    kind: "out-of-memory"
    /** The bytes of memory that it had. */
    memory: number
    /** The process, as the machine numbers it. */
    pid: number
    /** The session it was in; absent for a process of the machine itself. */
    session?: string | null
  }
  /** A session has reached its limit of processes: it can start no more. */
  | {
    kind: "process-limit"
    /** The session. */
    session: string
  }
  /** A session's first process died and all others with it. It takes no commands until it is removed and made again; what it has on the disk is there until then. */
  | {
    kind: "session-died"
    /** The session. */
    session: string
  }
  /** A command in the background has ended. What it wrote last waits for somebody who attaches to it. */
  | {
    /** What to attach by. */
    background: number
    /** How. */
    exit: Exit
    kind: "background-ended"
  }
  /** The guest had more to tell than was listened to. */
  | {
    /** So many events. */
    events: number
    kind: "lost"
  }
  /** The machine, or its worker, has died. The next command starts a fresh one with the same shares and the same persistent disk. */
  | {
    /** The error's stable code; `worker-died` if it was the worker. */
    code: string
    kind: "died"
    /** One sentence. */
    message: string
  }
  /** It has ended as it was asked to. */
  | {
    kind: "stopped"
  }

/** A command. */
export type CommandSpec = {
  /** The command and its arguments; one without a slash is looked up in `PATH`. */
  argv?: string[]
  /** It outlives whoever started it: one who leaves, or is gone, leaves it running, and `started` says by which number others attach to it. */
  background?: boolean
  /** No defaults: `env` is the whole environment. */
  clear_env?: boolean
  /** The working directory; absent: `/` or the session's home. */
  cwd?: string | null
  /** Variables beside the defaults. */
  env?: Record<string, string>
  /** The session that it runs in; absent: the machine itself, as its root. */
  session?: string | null
  /** Standard input comes from the caller; otherwise it is empty. */
  stdin?: boolean
  /** Milliseconds after which the command is ended. */
  timeout_ms?: number | null
  /** A terminal of this size in place of pipes. */
  tty?: TtySize | null
}

/** The size of a terminal in character cells. */
export type TtySize = {
  /** Characters in a line. */
  cols: number
  /** Lines. */
  rows: number
}

/** How a process ended. */
export type Exit =
  /** With this status. */
  | {
    code: number
  }
  /** By this signal. */
  | {
    signal: number
  }
  /** Its time was over. */
  | "timed-out"

/** A command in the background. One that has ended is listed until somebody has attached to it and heard of its end, or its session is gone; a machine that starts afresh has none. */
export type BackgroundStatus = {
  /** Whether somebody is attached. */
  attached: boolean
  /** What to attach by. */
  background: number
  /** The command, its words apart by spaces, at most 256 bytes of it. */
  command: string
  /** How it ended, if it has. */
  exit?: Exit | null
  /** Its number as the machine counts processes. */
  pid: number
  /** The session that it runs in; absent: the machine itself. */
  session?: string | null
}

/** A session. Everything but the name has a default. */
export type SessionSpec = {
  /** What it may use. */
  limits?: SessionLimits
  /** Its name, which its user has too: letters, digits, `.`, `_` and `-`, at most 64. */
  name?: string
  /** It reaches the machine's network; otherwise it has a loopback interface of its own and nothing else. */
  network?: boolean
  /** Folders that it sees; it sees no others. They lie below the machine's shares or its `share_roots`. */
  shares?: ShareSpec[]
}

/** What a session may use. What is absent is bounded by the machine alone. */
export type SessionLimits = {
  /** Thousandths of one processor, 10 at least. */
  cpu_max?: number | null
  /** Its part of busy processors in relation to others, 1 to 10,000; absent: 100. */
  cpu_weight?: number | null
  /** Bytes on the machine's disk: home, `/tmp` and `/var/tmp` together. */
  disk?: number | null
  /** Bytes a second read from the machine's disk. */
  io_read?: number | null
  /** Bytes a second written to it. */
  io_write?: number | null
  /** Bytes of memory, with files in `/dev/shm` and cached files of its disk. */
  memory?: number | null
  /** Processes and threads at a time. */
  pids?: number | null
}

/** A session as it is. */
export type SessionStatus = {
  /** Bytes on the machine's disk that it uses now. */
  disk: number
  /** What it may use. */
  limits: SessionLimits
  /** Bytes of memory that it uses now. */
  memory: number
  /** Its name. */
  name: string
  /** It reaches the machine's network. */
  network: boolean
  /** Processes and threads that it has now. */
  pids: number
  /** What it sees of the host. */
  shares: ShareSpec[]
  /** Its user's number in the guest; absent while its machine does not run. */
  uid?: number | null
}

/** What was copied. */
export type Copied = {
  /** Bytes of the files. */
  bytes: number
  /** Files, folders and links. */
  entries: number
}
