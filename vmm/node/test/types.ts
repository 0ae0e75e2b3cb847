// Compiles, or does not where it must not. It is never run.

import { CabanaError, Engine, type MachineEvent, type Session } from 'cabana'

export async function converse(signal: AbortSignal): Promise<number> {
  const engine = new Engine({ home: '/store' })
  await using machine = engine.machine({ name: 'm', shares: [{ host: '/src', guest: '/src', read_only: true }] })
  const session: Session = await machine.createSession({ name: 'chat', limits: { memory: 1 << 28, pids: 100 } })
  const process = await session.exec({ argv: ['cat'], stdin: true, timeout_ms: 1000 }, { signal })
  process.stdin.end('hello')
  for await (const event of process) {
    if (event.kind === 'stdout') event.data.toString()
    if (event.kind === 'exited' && event.exit !== 'timed-out' && 'code' in event.exit) return event.exit.code
  }
  try {
    await machine.run(['true'], { input: 'x' })
  } catch (error) {
    if (error instanceof CabanaError) return error.code.length
  }
  // @ts-expect-error: the name of an option is checked
  engine.machine({ nam: 'x' })
  // @ts-expect-error: machines come from engines
  new (machine.constructor as typeof import('cabana').Machine)()
  return 0
}

export function told(event: MachineEvent): string {
  switch (event.kind) {
    case 'died':
      return `${event.code}: ${event.message}`
    case 'out-of-memory':
      return `${event.session ?? 'the machine'}: ${event.command}`
    default:
      return event.kind
  }
}
