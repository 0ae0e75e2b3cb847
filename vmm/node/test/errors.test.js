// What can be tested where no machine runs.
'use strict'

const assert = require('node:assert/strict')
const { execFileSync } = require('node:child_process')
const { existsSync, mkdtempSync } = require('node:fs')
const os = require('node:os')
const path = require('node:path')
const { test } = require('node:test')
const { Worker } = require('node:worker_threads')

const { CabanaError, Engine } = require('cabana')

const home = mkdtempSync(path.join(os.tmpdir(), 'cabana-'))
const failed = (code, words) => (error) =>
  error instanceof CabanaError && error.code === code && words.test(error.message)

test('what fails has a class, a code and a sentence', async () => {
  assert.throws(() => new Engine({ hom: home }), failed('invalid', /the engine is not understood.*hom/))
  const engine = new Engine({ home })
  assert.throws(() => engine.machine({ name: '../x' }), failed('invalid', /no name for a machine/))
  const machine = engine.machine({ name: 'one' })
  assert.throws(() => engine.machine({ name: 'one' }), failed('exists', /machine one/))
  await assert.rejects(machine.exec(['true']), failed('store', /default/))
  await assert.rejects(machine.exec({ args: ['true'] }), failed('invalid', /the command is not understood/))
  await assert.rejects(machine.session('chat'), failed('not-found', /session chat/))
  await assert.rejects(machine.forward('nowhere', '127.0.0.1:80'), failed('invalid', /no address/))
})

test('a machine tells of its starts, and its name is free when it is closed', async () => {
  const engine = new Engine({ home })
  const machine = engine.machine({ name: 'm' })
  assert.equal(machine.status().state, 'idle')
  const events = machine.events()
  await assert.rejects(machine.start())
  assert.deepEqual(await events.next(), { value: { kind: 'starting', generation: 1 }, done: false })
  assert.equal((await events.next()).value.kind, 'died')
  await machine.close()
  await machine.close()
  assert.deepEqual(await events.next(), { value: undefined, done: true })
  assert.throws(() => machine.status(), failed('invalid', /closed/))
  engine.machine({ name: 'm' })
})

test('listening ends when it is not wanted any more, and a machine alone keeps no program alive', async () => {
  const machine = new Engine({ home }).machine({ name: 'listened' })
  const enough = new AbortController()
  const events = machine.events({ signal: enough.signal })
  const next = events.next()
  enough.abort()
  assert.deepEqual(await next, { value: undefined, done: true })
  for await (const event of machine.events({ signal: AbortSignal.abort() })) assert.fail(event)
  const program = `const m = new (require('cabana').Engine)({}).machine(); m.events(); console.log('over')`
  const ended = execFileSync(process.execPath, ['-e', program], { cwd: path.dirname(__dirname), timeout: 60_000 })
  assert.equal(String(ended), 'over\n')
})

test('an aborted call says so by the signal’s reason', async () => {
  const machine = new Engine({ home }).machine({ name: 'aborted' })
  await assert.rejects(machine.exec(['true'], { signal: AbortSignal.abort(new Error('enough')) }), /enough/)
})

test('worker threads have engines of their own', async () => {
  const program = `
    const { parentPort } = require('node:worker_threads')
    const { Engine } = require('cabana')
    const machine = new Engine({ home: ${JSON.stringify(home)} }).machine()
    machine.exec(['true']).catch((error) => parentPort.postMessage(error.code))`
  const codes = [1, 2, 3, 4].map(
    () => new Promise((resolve, reject) => {
      const worker = new Worker(program, { eval: true })
      worker.on('message', resolve).on('error', reject)
    }),
  )
  assert.deepEqual(await Promise.all(codes), ['store', 'store', 'store', 'store'])
})

test('the types fit the schema and the examples', (context) => {
  const folder = path.dirname(__dirname)
  if (!existsSync(path.join(folder, '../../docs/serve.schema.json'))) return context.skip('not in the checkout')
  execFileSync(process.execPath, ['scripts/types.js', '--check'], { cwd: folder, stdio: 'inherit' })
  const compiler = path.join(folder, 'node_modules/typescript/bin/tsc')
  if (!existsSync(compiler)) return context.skip('no TypeScript: `npm ci --ignore-scripts` brings it')
  execFileSync(process.execPath, [compiler, '--project', 'test'], { cwd: folder, stdio: 'inherit' })
})
