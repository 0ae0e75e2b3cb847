import type { Readable, Writable } from 'node:stream'

import type {
  BackgroundStatus,
  CommandSpec,
  Copied,
  Exit,
  MachineEvent,
  MachineSpec,
  MachineStatus,
  NetworkStatus,
  PolicySpec,
  Remember,
  SessionLimits,
  SessionSpec,
  SessionStatus,
  ShareSpec,
  TtySize,
} from './schema'

export * from './schema'

/** An engine. Everything has a default. */
export type EngineSpec = {
  /** The store of kernels, agents and images; absent: the user's. */
  home?: string
  /** The worker's program; absent: the package's own. */
  worker?: string
  /** Where disks that vanish with their machine live; absent: the system's folder of temporary files. */
  scratch?: string
  /** Machines on threads of this process, unconfined. */
  in_process?: boolean
}

/** A command's words, or all that can be said of it. */
export type Command = string[] | CommandSpec

/** What happens to a process. */
export type ProcessEvent =
  /** It runs, under this number of the guest. */
  | { kind: 'started'; pid: number; background?: number }
  /** It wrote to standard output; with a terminal: everything it wrote. */
  | { kind: 'stdout'; data: Buffer }
  /** It wrote to standard error. */
  | { kind: 'stderr'; data: Buffer }
  /** It has ended; nothing comes after. */
  | { kind: 'exited'; exit: Exit }
  /** It runs on in the background without this end: it was left, or somebody else has attached to it; nothing comes after. */
  | { kind: 'detached' }

/** What a command said, and how it ended. */
export type Output = {
  stdout: Buffer
  stderr: Buffer
  exit: Exit
}

/** A call that can be given up: it is rejected with the signal's reason. */
export type Abortable = { signal?: AbortSignal }

/** What every call that fails is rejected with. */
export class CabanaError extends Error {
  /** For programs; it never changes its meaning. docs/errors.md lists them. */
  readonly code: string
  /** For people: one sentence. */
  readonly message: string
}

/** Makes machines. */
export class Engine {
  constructor(spec?: EngineSpec)
  /** A machine. It starts with its first command. */
  machine(spec?: MachineSpec): Machine
}

/** Commands, files and ports: of a session, or of the machine itself. Every call starts the machine if need be. */
declare class Place {
  /** Starts a command. When `signal` says so, it is hung up and whoever waits for it hears the signal's reason. */
  exec(command: Command, options?: Abortable): Promise<Process>
  /** Runs a command to its end, with this input, and gathers what it says. */
  run(command: Command, options?: Abortable & { input?: string | Uint8Array }): Promise<Output>
  /** Copies a file or folder of the host's in. A `guest` that ends with a slash is a folder to put it in. */
  copyIn(host: string, guest: string): Promise<Copied>
  /** Copies a file or folder of the guest's out. A `host` that is a folder, or ends with a slash, gets it. */
  copyOut(guest: string, host: string): Promise<Copied>
  /** Reads a file of 64 MiB at most. */
  readFile(path: string): Promise<Buffer>
  /** Writes a file; missing folders are made. `mode` is 0o644 if it is not given. */
  writeFile(path: string, data: string | Uint8Array, mode?: number): Promise<void>
  /** Shows a folder of the host's, below a share of the machine's or one of its `share_roots`. */
  addShare(share: ShareSpec): Promise<void>
  /** Takes a folder away that was shown so. */
  removeShare(guest: string): Promise<void>
  /** The folders that are shown. */
  shares(): Promise<ShareSpec[]>
  /** Leads a TCP port of the host's (`127.0.0.1:8080`; port 0 is any free one) to one of the guest's. */
  forward(host: string, guest: string): Promise<Forward>
  /** Leads a TCP port of the guest's to one that the host reaches, until the machine ends. */
  forwardBack(guest: string, host: string): Promise<Forward>
}

/** A machine. It stops when it is closed, or is no longer held by anything, processes included. */
export class Machine extends Place {
  private constructor()
  readonly name: string
  /**
   * What happens to it from now on: an iterator that ends when the machine is closed, or `signal` says so. 1,024
   * events wait for a listener; further ones are lost to it. Waiting for one keeps the program alive.
   */
  events(options?: Abortable): AsyncIterableIterator<MachineEvent>
  /** How it is. */
  status(): MachineStatus
  /** Starts it and waits until it takes commands. Commands do so by themselves. */
  start(): Promise<void>
  /** Ends all processes, flushes, and ends it. The next command starts it again. */
  shutdown(): Promise<void>
  /** Ends it as if its power had failed; a start that is under way, too. The next command starts it again. */
  stop(): Promise<void>
  /** Lets its processors stand still until it is used; false, and nothing happens, while a process runs. */
  suspend(): Promise<boolean>
  /** What its kernel said last. */
  console(): Promise<string>
  /** Stops it and gives it up; its name is free then. */
  close(): Promise<void>
  /** All commands in the background: those whose description has `background`. */
  backgroundCommands(): Promise<BackgroundStatus[]>
  /**
   * Goes on with a command in the background, by its number. What it has written meanwhile comes first; whoever has
   * been attached to it before hears `detached`.
   */
  attach(background: number, options?: Abortable): Promise<Process>
  /** Makes a session: a user with a home, limits and shares of its own. */
  createSession(spec: SessionSpec & { name: string }): Promise<Session>
  /** The session of this name. */
  session(name: string): Promise<Session>
  /** All sessions, by name. */
  sessions(): Promise<SessionStatus[]>
  /** How its network is: rules, published ports, figures. */
  network(): Promise<NetworkStatus>
  /** Puts other rules in place of its own, for what is open too; their number, 0 if it does not run. */
  setPolicy(policy: PolicySpec): Promise<number>
  /** Answers a question of its network, which an event told of by its number (`ask`). */
  answer(question: number, allow: boolean, remember?: Remember): Promise<void>
  [Symbol.asyncDispose](): Promise<void>
}

/** A session of a machine. It stays until it is removed; a machine that starts afresh has it again. */
export class Session extends Place {
  private constructor()
  readonly name: string
  /** How it is. */
  status(): Promise<SessionStatus>
  /** Gives it other limits, all of them. */
  limit(limits: SessionLimits): Promise<SessionStatus>
  /** Gives it other rules of its own, or with null the machine's; their number. */
  setPolicy(policy: PolicySpec | null): Promise<number>
  /** Ends its processes and deletes what it has. */
  remove(): Promise<void>
}

/**
 * A command in a machine. Its events are read in one of three ways: by `for await` over the process itself, by
 * `output()`, or from the streams `stdout` and `stderr`. What is not read stays in the guest, whose command waits:
 * nothing is lost. One that is forgotten before its end is hung up, or runs on in the background.
 */
export class Process implements AsyncIterable<ProcessEvent> {
  private constructor()
  /** Its number in the guest, once `started` has been read. */
  readonly pid: number | undefined
  /** What others attach to it by, once `started` has been read, if it is in the background. */
  readonly background: number | undefined
  /** The next event; null after the last. */
  nextEvent(): Promise<ProcessEvent | null>
  /** Its events, to the last. Leaving the loop leaves the process as it is. */
  [Symbol.asyncIterator](): AsyncIterator<ProcessEvent>
  /** How it ended, once its last event has been read. Rejected if it could not be started or its machine died. */
  readonly exited: Promise<Exit>
  /** Waits for its end and gathers what it says. */
  output(): Promise<Output>
  /** Its standard output. A stream that nobody reads holds the command up, as a pipe does; so read both. */
  readonly stdout: Readable
  /** Its standard error. */
  readonly stderr: Readable
  /** Its standard input, if its description has `stdin`. */
  readonly stdin: Writable
  /** Gives it input; resolved when it has room for it. False if it takes no more. */
  write(data: string | Uint8Array): Promise<boolean>
  /** Ends its input. */
  closeStdin(): void
  /** Sends a Linux signal, by its number, to its process group. */
  signal(number: number): void
  /** Says that its terminal has a new size. */
  resize(size: TtySize): void
  /** Leaves it running, if it is in the background; its last event is `detached`. Otherwise it is ended. */
  detach(): void
  /** Ends it by breaking off, unless it is in the background; whoever waits for it hears so. */
  hangUp(): void
}

/** A TCP port that leads elsewhere, until it is closed or forgotten. */
export class Forward {
  private constructor()
  /** Where it is listened: on the host, or in the guest. */
  readonly listens: string
  /** Ends it, with its connections. */
  close(): void
}
