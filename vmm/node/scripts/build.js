// build.js [BUILT]: puts the native half and the programs that it starts into native/, from the folder BUILT in which
// cargo has put them; without one cargo builds them first.
'use strict'

const { execFileSync } = require('node:child_process')
const { copyFileSync, existsSync, mkdirSync, rmSync } = require('node:fs')
const path = require('node:path')

const here = path.dirname(__dirname)
const root = path.resolve(here, '../..')

function build() {
  const words = ['build', '--release', '-p', 'cabana-node', '-p', 'cabana-worker', '-p', 'cabana-pac']
  execFileSync('cargo', words, { cwd: root, stdio: ['ignore', 'inherit', 'inherit'] })
  const metadata = execFileSync('cargo', ['metadata', '--no-deps', '--format-version', '1'], {
    cwd: root,
    maxBuffer: 64 << 20,
  })
  return path.join(JSON.parse(metadata).target_directory, 'release')
}

function place(built, from, to) {
  const target = path.join(here, 'native', to)
  // Not over a file that a program has loaded.
  rmSync(target, { force: true })
  copyFileSync(path.join(built, from), target)
}

const built = process.argv[2] ?? build()
mkdirSync(path.join(here, 'native'), { recursive: true })
place(built, 'libcabana_node.so', 'cabana.node')
for (const program of ['cabana-worker', 'cabana-pac']) {
  if (existsSync(path.join(built, program))) place(built, program, program)
}
