// Two conversations in one machine: each a session with a home and limits of its own.
//
//     node two-sessions.mjs

import { Engine } from 'cabana'

const machine = new Engine().machine({ name: 'two-sessions' })
const watching = (async () => {
  for await (const event of machine.events()) {
    if (event.kind === 'progress') console.error(`the machine is ${event.step}`)
  }
})()

/** One conversation: a file that only this session sees, then a command whose output is read as it comes. */
async function converse(name, words) {
  const session = await machine.createSession({ name, limits: { pids: 50, memory: 128 << 20 } })
  await session.writeFile('notes.txt', words.map((word) => `${word}\n`).join(''))
  const process = await session.exec(['sh', '-c', 'id -un; while read word; do echo "$word"; done < notes.txt; ls /sessions'])
  let said = ''
  for await (const event of process) {
    if (event.kind === 'stdout') said += event.data
  }
  console.log(`${name}: ${said.trim().split('\n').join(' ')}: ${JSON.stringify(await process.exited)}`)
  await session.remove()
}

await Promise.all([converse('chat-1', ['red', 'green']), converse('chat-2', ['blue'])])
await machine.shutdown()
await machine.close()
await watching
