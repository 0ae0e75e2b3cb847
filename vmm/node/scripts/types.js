// types.js [--check]: writes lib/schema.d.ts, which is docs/serve.schema.json in TypeScript; or says whether it is.
'use strict'

const { readFileSync, writeFileSync } = require('node:fs')
const path = require('node:path')

const schema = path.resolve(__dirname, '../../../docs/serve.schema.json')
const target = path.resolve(__dirname, '../lib/schema.d.ts')
const NAMES = [
  'MachineSpec', 'ShareSpec', 'MachineStatus', 'MachineState', 'MachineEvent',
  'CommandSpec', 'TtySize', 'Exit', 'BackgroundStatus',
  'SessionSpec', 'SessionLimits', 'SessionStatus', 'Copied', 'NetworkStatus', 'Remember',
]

const comment = (text, indent) =>
  text ? `${indent}/** ${text.replaceAll('\n', ' ')} */\n` : ''

function type(node, indent) {
  if (node.$ref) return node.$ref.split('/').pop()
  if ('const' in node) return JSON.stringify(node.const)
  if (node.enum) return node.enum.map((value) => JSON.stringify(value)).join(' | ')
  const choices = node.oneOf ?? node.anyOf
  if (choices) {
    const each = choices.map((choice) => `\n${comment(choice.description, `${indent}  `)}${indent}  | ${type(choice, `${indent}  `)}`)
    return node.oneOf ? each.join('') : choices.map((choice) => type(choice, indent)).join(' | ')
  }
  if (Array.isArray(node.type)) {
    return node.type.map((one) => type({ ...node, type: one }, indent)).join(' | ')
  }
  switch (node.type) {
    case 'integer':
    case 'number':
      return 'number'
    case 'array':
      return `${type(node.items, indent)}[]`
    case 'object':
      if (!node.properties) return `Record<string, ${type(node.additionalProperties, indent)}>`
      return object(node, indent)
    case 'string':
    case 'boolean':
    case 'null':
      return node.type
    default:
      throw new Error(`no type for ${JSON.stringify(node)}`)
  }
}

function object(node, indent) {
  const required = new Set(node.required ?? [])
  const fields = Object.entries(node.properties).map(([name, field]) => {
    const mark = required.has(name) ? '' : '?'
    return `${comment(field.description, `${indent}  `)}${indent}  ${name}${mark}: ${type(field, `${indent}  `)}\n`
  })
  return `{\n${fields.join('')}${indent}}`
}

const definitions = JSON.parse(readFileSync(schema, 'utf8')).$defs

/** NAMES, and what they name. */
function all() {
  const found = new Set(NAMES)
  for (const name of found) {
    for (const [, other] of JSON.stringify(definitions[name]).matchAll(/"#\/\$defs\/(\w+)"/g)) found.add(other)
  }
  return [...found]
}

const declare = (name) => `${comment(definitions[name].description, '')}export type ${name} =${type(definitions[name], '').replace(/^(?!\n)/, ' ')}\n`
const text = `// Written by scripts/types.js out of docs/serve.schema.json.\n\n${all().map(declare).join('\n')}`

if (process.argv[2] !== '--check') {
  writeFileSync(target, text)
} else if (readFileSync(target, 'utf8') !== text) {
  console.error('lib/schema.d.ts is old; `npm run types` writes it anew')
  process.exitCode = 1
}
