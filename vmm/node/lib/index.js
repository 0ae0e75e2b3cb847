// Cabana's engine for Node.js. docs/node.md is the guide, index.d.ts says what each part promises.
'use strict'

const { Readable, Writable } = require('node:stream')

const { CabanaError, ask, sync } = require('./error.js')
const { Events } = require('./events.js')
const native = require('../native/cabana.node')

/** Descriptions are plain objects; the native half takes their JSON. */
const text = (spec) => JSON.stringify(spec)
const answer = async (promise) => JSON.parse(await ask(promise))
const bytes = (data) => (typeof data === 'string' ? Buffer.from(data) : Buffer.from(data.buffer, data.byteOffset, data.byteLength))

class Engine {
  #native

  constructor(spec = {}) {
    this.#native = sync(() => new native.Engine(text(spec)))
  }

  machine(spec = {}) {
    return new Machine(sync(() => this.#native.machine(text(spec))), spec.name ?? 'default')
  }
}

/** Commands, files and ports: of a session, or of the machine itself. */
class Place {
  #machine
  #session

  constructor(machine, session) {
    this.#machine = machine
    this.#session = session
  }

  async exec(command, { signal } = {}) {
    signal?.throwIfAborted()
    const spec = Array.isArray(command) ? { argv: command } : { ...command }
    if (this.#session !== undefined) spec.session = this.#session
    const starting = ask(this.#machine.exec(text(spec))).then((started) => new Process(started, signal))
    return signal ? unlessAborted(starting, signal) : starting
  }

  async run(command, { signal, input } = {}) {
    const spec = Array.isArray(command) ? { argv: command } : { ...command }
    if (input !== undefined) spec.stdin = true
    const process = await this.exec(spec, { signal })
    if (input === undefined) return process.output()
    // A command that takes no more input than it wants has not failed.
    const sent = process.write(input).then(() => process.closeStdin())
    const [output] = await Promise.all([process.output(), sent])
    return output
  }

  copyIn(host, guest) {
    return answer(this.#machine.copyIn(this.#session, host, guest))
  }

  copyOut(guest, host) {
    return answer(this.#machine.copyOut(this.#session, guest, host))
  }

  readFile(path) {
    return ask(this.#machine.readFile(this.#session, path))
  }

  writeFile(path, data, mode = 0o644) {
    return ask(this.#machine.writeFile(this.#session, path, bytes(data), mode))
  }

  addShare(share) {
    return ask(this.#machine.addShare(this.#session, text(share)))
  }

  removeShare(guest) {
    return ask(this.#machine.removeShare(this.#session, guest))
  }

  shares() {
    return answer(this.#machine.shares(this.#session))
  }

  async forward(host, guest) {
    return new Forward(await ask(this.#machine.forward(this.#session, host, guest, false)))
  }

  async forwardBack(guest, host) {
    return new Forward(await ask(this.#machine.forward(this.#session, guest, host, true)))
  }
}

class Machine extends Place {
  #native
  #events = new Events()

  constructor(made, name) {
    super(made, undefined)
    this.#native = made
    this.name = name
    // It must not hold this object, or the machine would never be forgotten.
    const events = this.#events
    sync(() => made.listen((event) => events.tell(event === null ? null : JSON.parse(event))))
  }

  events({ signal } = {}) {
    return this.#events.listen(signal)
  }

  status() {
    return JSON.parse(sync(() => this.#native.status()))
  }

  start() {
    return ask(this.#native.start())
  }

  shutdown() {
    return ask(this.#native.shutdown())
  }

  stop() {
    return ask(this.#native.stop())
  }

  suspend() {
    return ask(this.#native.suspend())
  }

  console() {
    return ask(this.#native.console())
  }

  close() {
    return ask(this.#native.close())
  }

  backgroundCommands() {
    return answer(this.#native.background())
  }

  async attach(background, { signal } = {}) {
    signal?.throwIfAborted()
    const attaching = ask(this.#native.attach(background)).then((attached) => new Process(attached, signal))
    return signal ? unlessAborted(attaching, signal) : attaching
  }

  async createSession(spec) {
    const status = await answer(this.#native.createSession(text(spec)))
    return new Session(this.#native, status.name)
  }

  async session(name) {
    const found = (await this.sessions()).some((session) => session.name === name)
    if (!found) throw new CabanaError('not-found', `there is no session ${name}`)
    return new Session(this.#native, name)
  }

  sessions() {
    return answer(this.#native.sessions())
  }

  network() {
    return answer(this.#native.network())
  }

  setPolicy(policy) {
    return answer(this.#native.setPolicy(undefined, text(policy)))
  }

  answer(question, allow, remember = 'once') {
    return ask(this.#native.answer(question, allow, text(remember)))
  }
}

class Session extends Place {
  #machine

  constructor(machine, name) {
    super(machine, name)
    this.#machine = machine
    this.name = name
  }

  async status() {
    const all = await answer(this.#machine.sessions())
    const found = all.find((session) => session.name === this.name)
    if (!found) throw new CabanaError('not-found', `there is no session ${this.name}`)
    return found
  }

  limit(limits) {
    return answer(this.#machine.limitSession(this.name, text(limits)))
  }

  setPolicy(policy) {
    return answer(this.#machine.setPolicy(this.name, text(policy)))
  }

  remove() {
    return ask(this.#machine.removeSession(this.name))
  }
}

class Process {
  #native
  #signal
  #abort
  #last = Promise.resolve()
  #over = false
  #exited = resolvers()
  #streams
  #stdin

  constructor(started, signal) {
    this.#native = started
    this.#signal = signal
    this.#abort = () => started.hangUp()
    // Who wants to know waits for it; nobody has to.
    this.#exited.promise.catch(() => {})
    if (signal?.aborted) this.#abort()
    else signal?.addEventListener('abort', this.#abort, { once: true })
  }

  /** The next event; null after the last. Each event goes to one who asks. */
  nextEvent() {
    const next = this.#last.then(() => this.#read())
    this.#last = next.catch(() => {})
    return next
  }

  async #read() {
    if (this.#over) return null
    let event
    try {
      event = await ask(this.#native.next())
    } catch (error) {
      const why = this.#signal?.aborted ? this.#signal.reason : error
      this.#end()
      this.#exited.reject(why)
      throw why
    }
    if (typeof event === 'string') event = JSON.parse(event)
    if (event?.kind === 'started') {
      this.pid = event.pid
      this.background = event.background
    } else if (event?.kind === 'exited') {
      this.#end()
      this.#exited.resolve(event.exit)
    } else if (event === null || event.kind === 'detached') {
      this.#end()
      this.#exited.reject(new CabanaError('invalid', 'the command runs on in the background'))
    }
    return event
  }

  #end() {
    this.#over = true
    this.#signal?.removeEventListener('abort', this.#abort)
  }

  async *[Symbol.asyncIterator]() {
    for (let event; (event = await this.nextEvent()) !== null; ) yield event
  }

  /** How it ended, once its last event has been read by any way of reading. */
  get exited() {
    return this.#exited.promise
  }

  async output() {
    const said = { stdout: [], stderr: [] }
    for await (const event of this) said[event.kind]?.push(event.data)
    return {
      stdout: Buffer.concat(said.stdout),
      stderr: Buffer.concat(said.stderr),
      exit: await this.exited,
    }
  }

  get stdout() {
    this.#streams ??= split(this)
    return this.#streams.stdout
  }

  get stderr() {
    this.#streams ??= split(this)
    return this.#streams.stderr
  }

  get stdin() {
    this.#stdin ??= new Writable({
      write: (chunk, encoding, done) => {
        const gone = () => done(new CabanaError('invalid', 'the command takes no more input'))
        this.write(Buffer.from(chunk, encoding)).then((taken) => (taken ? done() : gone()), done)
      },
      final: (done) => {
        this.closeStdin()
        done()
      },
    })
    return this.#stdin
  }

  write(data) {
    return ask(this.#native.write(bytes(data)))
  }

  closeStdin() {
    this.#native.closeStdin()
  }

  signal(number) {
    this.#native.signal(number)
  }

  resize(size) {
    this.#native.resize(size.rows, size.cols)
  }

  detach() {
    this.#native.detach()
  }

  hangUp() {
    this.#native.hangUp()
  }
}

class Forward {
  #native

  constructor(made) {
    this.#native = made
    this.listens = made.listens()
  }

  close() {
    this.#native.close()
  }
}

/** A process's events as two streams. While one of them is full nothing is read, so that nothing is lost. */
function split(process) {
  const full = new Set()
  let reading = false
  const flow = async () => {
    if (reading) return
    reading = true
    try {
      while (full.size === 0) {
        const event = await process.nextEvent()
        if (event === null) {
          for (const stream of Object.values(streams)) stream.push(null)
          return
        }
        const stream = streams[event.kind]
        if (stream && !stream.destroyed && !stream.push(event.data)) full.add(stream)
      }
      reading = false
    } catch {
      // Why is what `exited` says; an end that comes too early is what a reader sees.
      for (const stream of Object.values(streams)) stream.destroy()
    }
  }
  const make = () => {
    const resume = (stream) => {
      full.delete(stream)
      flow()
    }
    return new Readable({
      read() {
        resume(this)
      },
      destroy(error, done) {
        done(error)
        resume(this)
      },
    })
  }
  const streams = { stdout: make(), stderr: make() }
  return streams
}

/** A start that nobody waits for any more once `signal` says so; what starts all the same is hung up. */
function unlessAborted(starting, signal) {
  return new Promise((resolve, reject) => {
    const abort = () => {
      reject(signal.reason)
      starting.then((process) => process.hangUp(), () => {})
    }
    signal.addEventListener('abort', abort, { once: true })
    starting.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort))
  })
}

function resolvers() {
  let resolve, reject
  const promise = new Promise((yes, no) => {
    resolve = yes
    reject = no
  })
  return { promise, resolve, reject }
}

// Where the language has `await using`.
if (Symbol.asyncDispose) {
  Machine.prototype[Symbol.asyncDispose] = Machine.prototype.close
}

module.exports = { CabanaError, Engine, Forward, Machine, Process, Session }
