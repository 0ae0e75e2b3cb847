// In real machines.
'use strict'

const assert = require('node:assert/strict')
const { execFileSync } = require('node:child_process')
const { createHash, randomBytes } = require('node:crypto')
const net = require('node:net')
const path = require('node:path')
const { Readable } = require('node:stream')
const { pipeline } = require('node:stream/promises')
const { test } = require('node:test')
const { Worker } = require('node:worker_threads')

const { CabanaError, Engine } = require('cabana')

const engine = new Engine()
const machine = engine.machine({ name: 'node' })
const events = machine.events()
const failed = (code) => (error) => error instanceof CabanaError && error.code === code

test('the first command starts the machine, which tells of it', async () => {
  const output = await machine.run(['uname', '-s'])
  assert.deepEqual({ ...output, stdout: String(output.stdout) }, {
    stdout: 'Linux\n',
    stderr: Buffer.alloc(0),
    exit: { code: 0 },
  })
  const steps = []
  for await (const event of events) {
    steps.push(event.kind === 'progress' ? event.step : event.kind)
    if (event.kind === 'ready') break
  }
  assert.equal(steps[0], 'starting')
  assert.ok(steps.includes('booting') && steps.at(-1) === 'ready', steps.join())
  const { state, generation } = machine.status()
  assert.deepEqual({ state, generation }, { state: 'running', generation: 1 })
})

test('output comes event by event, with the end last', async () => {
  const process = await machine.exec(['sh', '-c', 'echo out; echo err >&2; exit 3'])
  const said = { stdout: '', stderr: '' }
  const kinds = []
  for await (const event of process) {
    kinds.push(event.kind)
    if (event.data) said[event.kind] += event.data
  }
  assert.deepEqual(said, { stdout: 'out\n', stderr: 'err\n' })
  assert.equal(kinds[0], 'started')
  assert.equal(kinds.at(-1), 'exited')
  assert.ok(process.pid > 1)
  assert.deepEqual(await process.exited, { code: 3 })
  assert.equal(await process.nextEvent(), null)
})

test('streams lose nothing in either direction', async () => {
  const sent = randomBytes(4 << 20)
  const process = await machine.exec({ argv: ['cat'], stdin: true })
  process.stderr.resume()
  const hash = createHash('sha256')
  const pieces = Readable.from((function* () {
    for (let at = 0; at < sent.length; at += 100_000) yield sent.subarray(at, at + 100_000)
  })())
  await Promise.all([pipeline(pieces, process.stdin), pipeline(process.stdout, hash)])
  assert.equal(hash.digest('hex'), createHash('sha256').update(sent).digest('hex'))
  assert.deepEqual(await process.exited, { code: 0 })
})

test('signals, terminals and time limits', async () => {
  const sleeper = await machine.exec(['sleep', '1000'])
  assert.equal((await sleeper.nextEvent()).kind, 'started')
  sleeper.signal(15)
  assert.deepEqual((await sleeper.output()).exit, { signal: 15 })
  const terminal = await machine.run({ argv: ['stty', 'size'], tty: { rows: 33, cols: 44 } })
  assert.equal(String(terminal.stdout), '33 44\r\n')
  const late = await machine.run({ argv: ['sleep', '1000'], timeout_ms: 100 })
  assert.equal(late.exit, 'timed-out')
})

test('what cannot be started fails with its code', async () => {
  await assert.rejects(machine.run(['no-such-program']), failed('exec'))
  const process = await machine.exec(['no-such-program'])
  process.stdout.on('error', () => {}).resume()
  await assert.rejects(process.exited, failed('exec'))
})

test('an abort hangs a command up, and the machine goes on', async () => {
  const enough = new AbortController()
  const running = machine.run(['sleep', '1000'], { signal: enough.signal })
  setTimeout(() => enough.abort(new Error('enough')), 200)
  await assert.rejects(running, /enough/)
  assert.equal(String((await machine.run(['cat'], { input: 'on' })).stdout), 'on')
})

test('commands in the background outlive who started them', async () => {
  const spec = { argv: ['sh', '-c', 'echo begun; read line; echo $line'], stdin: true, background: true }
  const first = await machine.exec(spec)
  assert.equal((await first.nextEvent()).kind, 'started')
  first.detach()
  let last
  for await (const event of first) last = event
  assert.equal(last.kind, 'detached')
  const [listed] = await machine.backgroundCommands()
  assert.deepEqual([listed.background, listed.attached, listed.exit], [first.background, false, null])
  const second = await machine.attach(first.background)
  await second.write('the end\n')
  assert.match(String((await second.output()).stdout), /the end\n$/)
  await assert.rejects(machine.attach(first.background), failed('not-found'))
})

test('sessions have files, limits and ports of their own', async () => {
  const session = await machine.createSession({ name: 'chat', limits: { pids: 50 } })
  await session.writeFile('notes/a.txt', 'hello', 0o600)
  assert.equal(String(await session.readFile('notes/a.txt')), 'hello')
  assert.equal(String((await session.run(['id', '-un'])).stdout), 'chat\n')
  assert.equal((await session.limit({ pids: 60 })).limits.pids, 60)
  assert.equal((await (await machine.session('chat')).status()).limits.pids, 60)
  const server = net.createServer((socket) => socket.end('from the host\n'))
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  const back = await session.forwardBack('127.0.0.1:0', `127.0.0.1:${server.address().port}`)
  const port = back.listens.split(':')[1]
  const script = 'import socket,sys; print(socket.create_connection(("127.0.0.1", int(sys.argv[1]))).makefile().read(), end="")'
  assert.equal(String((await session.run(['python3', '-c', script, port])).stdout), 'from the host\n')
  back.close()
  server.close()
  await session.remove()
  await assert.rejects(session.status(), failed('not-found'))
})

test('a network has rules, questions and listeners', async () => {
  const network = { policy: { ask: true } }
  const machine = engine.machine({ name: 'networked', network })
  const events = machine.events()
  const next = async (what) => {
    for await (const event of { [Symbol.asyncIterator]: () => ({ next: () => events.next() }) })
      if (event.kind === 'network' && event.event.what === what) return event.event
  }
  const connect = 'import socket; socket.create_connection(("198.51.100.7", 80))'
  for (const remember of ['once', 'machine']) {
    const refused = machine.run(['python3', '-c', connect])
    const { ask, host, port } = await next('ask')
    assert.deepEqual([host, port], ['198.51.100.7', 80])
    await machine.answer(ask, false, remember)
    assert.deepEqual((await refused).exit, { code: 1 })
  }
  // The second answer holds: nobody is asked a third time.
  assert.deepEqual((await machine.run(['python3', '-c', connect])).exit, { code: 1 })
  assert.ok((await machine.network()).denied >= 3)

  const listen = 'import socket; socket.create_server(("127.0.0.1", 8000)).accept()'
  const server = await machine.exec(['python3', '-c', listen])
  const { address, port } = await next('listening')
  assert.deepEqual([address, port], ['127.0.0.1', 8000])
  server.hangUp()
  assert.equal((await next('listening-ended')).port, 8000)

  const session = await machine.createSession({ name: 'chat', network: true })
  const { version } = await machine.network()
  assert.equal(await session.setPolicy({ allow: ['pypi'] }), version + 1)
  assert.equal(await machine.setPolicy({ allow: ['*.example.com'] }), version + 2)
  const { policy, sessions } = await machine.network()
  assert.deepEqual([policy.allow, sessions.chat.allow], [['*.example.com'], ['pypi']])
  await session.setPolicy(null)
  assert.deepEqual((await machine.network()).sessions, {})
  await assert.rejects(machine.setPolicy({ allow: ['no rule'] }), failed('invalid'))
  await machine.close()
})

test('worker threads drive machines, and one that is ended takes its machine along', async () => {
  const program = `
    const { parentPort } = require('node:worker_threads')
    const { Engine } = require('cabana')
    const machine = new Engine().machine({ name: 'threaded' })
    machine.run(['echo', 'from a thread']).then(async ({ stdout }) => {
      parentPort.postMessage([String(stdout), machine.status().worker])
      await machine.run(['sleep', '1000'])
    })`
  const thread = new Worker(program, { eval: true })
  const [said, worker] = await new Promise((resolve, reject) => thread.on('message', resolve).on('error', reject))
  assert.equal(said, 'from a thread\n')
  await thread.terminate()
  const gone = () => {
    try {
      process.kill(worker, 0)
      return false
    } catch {
      return true
    }
  }
  for (let tries = 0; !gone() && tries < 300; tries++) await new Promise((resolve) => setTimeout(resolve, 100))
  assert.ok(gone(), 'the worker process has ended')
  assert.equal(String((await machine.run(['echo', 'here'])).stdout), 'here\n')
})

test('a machine whose worker is killed starts afresh', async () => {
  const running = machine.run(['sleep', '1000'])
  while (machine.status().processes === 0) await new Promise((resolve) => setTimeout(resolve, 20))
  process.kill(machine.status().worker, 'SIGKILL')
  await assert.rejects(running, (error) => error instanceof CabanaError)
  assert.deepEqual((await machine.run(['true'])).exit, { code: 0 })
  assert.equal(machine.status().generation, 2)
  await machine.shutdown()
  await machine.close()
})

test('the example of two sessions', () => {
  const folder = path.dirname(__dirname)
  const said = execFileSync(process.execPath, ['examples/two-sessions.mjs'], { cwd: folder, encoding: 'utf8' })
  assert.deepEqual(said.trim().split('\n').sort(), [
    'chat-1: chat-1 red green chat-1: {"code":0}',
    'chat-2: chat-2 blue chat-2: {"code":0}',
  ])
})
