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
  /** Shares that are added while the machine runs may have journals: the machine's worker then reaches all journals of this user. */
  journals?: boolean
  /** Another kernel than the store's. */
  kernel?: string | null
  /** Bytes of RAM, whole pages; the host gives it as it is used. */
  memory?: number
  /** Its name: letters, digits, `.`, `_` and `-`, at most 64. */
  name?: string
  /** The network; without one there is only the guest's loopback. */
  network?: NetworkSpec | null
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
  /** What the guest destroys is kept, in at most this many bytes of the host's disk, so that `cabana share rollback` brings it back. A folder that the guest may only read needs none. */
  journal?: number | null
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
  /** Something happened in its network. */
  | {
    /** What. */
    event: NetworkEvent
    kind: "network"
  }
  /** Its network has died; a fresh start has one again. */
  | {
    kind: "network-died"
    /** One sentence. */
    message: string
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
  /** It has a network card of its own, with addresses that no other session has; otherwise a loopback interface of its own and nothing else. */
  network?: boolean
  /** What may leave it, in place of the machine's rules; with `network` alone. */
  policy?: PolicySpec | null
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
  /** It has a network card. */
  network: boolean
  /** Processes and threads that it has now. */
  pids: number
  /** Its own rules; absent: the machine's. */
  policy?: PolicySpec | null
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

/** A network as it is. */
export type NetworkStatus = {
  /** Bytes that came to it. */
  bytes_received: number
  /** Bytes that left the guest. */
  bytes_sent: number
  /** Flows that were refused. */
  denied: number
  /** Flows that there are. */
  flows: number
  /** Flows that there have been since the start. */
  flows_opened: number
  /** Packets whose source is not their sender's. */
  forged: number
  /** Frames with nothing that is served. */
  ignored: number
  /** Bytes of connections' buffers. */
  memory: number
  /** Packets that found a limit reached. */
  over_limit: number
  /** What may leave the machine. */
  policy: PolicySpec
  /** Where the host listens, in the order of the description; empty while the machine does not run. */
  published: string[]
  /** Rules of sessions' own. */
  sessions: Record<string, PolicySpec>
  /** The policy's number: 1 at a start, one more for each change. */
  version: number
}

/** How long an answer to a question holds. */
export type Remember =
  /** For what waits, and a yes for a minute more. */
  | "once"
  /** As long as the machine runs, for the session that wanted it. */
  | "session"
  /** As long as the machine runs, for all. */
  | "machine"

/** A machine's network. Nothing leaves unless the policy allows it. */
export type NetworkSpec = {
  /** A file that gets every frame, as Wireshark and tcpdump read it. */
  capture?: string | null
  /** Let the guest trust whom this host trusts. */
  host_trust?: boolean
  /** A file that gets every verdict, as JSON, one a line. */
  log?: string | null
  /** The largest IP packet; absent: 65,520 bytes. */
  mtu?: number | null
  /** What may leave the machine. */
  policy?: PolicySpec
  /** `none`; `env`: the proxies of the engine's environment; or a URL. Absent: `env`. */
  proxy?: string | null
  /** Ports of the host's that lead into the guest. */
  publish?: PublishSpec[]
  /** `NAME=VALUE@HOST…`: what the guest has only a placeholder of, in a variable of its commands. */
  secrets?: string[]
  /** Rules of sessions' own, by their names, in place of the machine's. */
  sessions?: Record<string, PolicySpec>
}

/** What happens in a machine's network. */
export type NetworkEvent =
  /** A flow was allowed or denied. */
  | {
    /** Where it goes. */
    address: string
    /** Its number. */
    flow: number
    /** The allowed name that it goes to, if it goes to one. */
    host?: string | null
    /** Where it goes; 0 for ICMP. */
    port: number
    /** `tcp`, `udp` or `icmp`. */
    protocol: string
    /** What was decided. */
    verdict: NetworkVerdict
    what: "flow"
  }
  /** A name was asked for. */
  | {
    /** What the guest was answered. */
    addresses: string[]
    /** The name. */
    host: string
    /** What was decided. */
    verdict: NetworkVerdict
    what: "query"
  }
  /** A flow has ended. */
  | {
    /** Its number. */
    flow: number
    /** Bytes to the guest. */
    received: number
    /** Bytes from the guest. */
    sent: number
    what: "closed"
  }
  /** A flow that was allowed failed on its way. */
  | {
    /** Its number. */
    flow: number
    what: "failed"
    /** Where and why. */
    why: string
  }
  /** A flow or a lookup is held until `network-answer`, 30 seconds at most. */
  | {
    /** The question's number. */
    ask: number
    /** A name, or an address that no name gave. */
    host: string
    /** The port; absent while a name is looked up. */
    port?: number | null
    /** The process that wants it, as the guest claims. */
    process?: string | null
    /** `tcp`, `udp` or `icmp`. */
    protocol: string
    what: "ask"
  }
  /** A question was answered, or its time passed. */
  | {
    /** What was answered. */
    allowed: boolean
    /** The question's number. */
    ask: number
    what: "answered"
  }
  /** Another policy holds. */
  | {
    /** Its number. */
    policy: number
    what: "policy"
  }
  /** Events were lost because nobody took them. */
  | {
    /** How many. */
    events: number
    what: "lost"
  }
  /** A program of the guest listens for TCP. Nothing follows from it: what leads there is the app's to say. */
  | {
    /** An address of the machine's or the session's own network. */
    address: string
    /** The port. */
    port: number
    what: "listening"
  }
  /** Nobody listens there any more. */
  | {
    /** The address. */
    address: string
    /** The port. */
    port: number
    what: "listening-ended"
  }

/** Rules, in the words of `docs/egress.md`. */
export type PolicySpec = {
  /** What may be reached. */
  allow?: string[]
  /** Ask about what no rule decides, in place of denying it. */
  ask?: boolean
  /** What may not; it goes before `allow`. */
  deny?: string[]
  /** Let encrypted `ClientHello`s pass. */
  ech?: boolean
}

/** A port of the host's that leads to one of the guest's. */
export type PublishSpec = {
  /** The guest's TCP port. */
  guest: number
  /** Where the host listens; port 0 is any free one. */
  host: string
}

/** What was decided, and why. */
export type NetworkVerdict = {
  /** It may pass. */
  allowed: boolean
  /** Why, for programs: it never changes its meaning. */
  code: string
  /** The policy's number. */
  policy: number
  /** Why, for people. */
  reason: string
  /** The rule that decided; absent if none speaks of it. */
  rule?: string | null
}
