'use strict'

/** What the engine says when something fails: `code` never changes its meaning. */
class CabanaError extends Error {
  constructor(code, message) {
    super(message)
    this.name = 'CabanaError'
    this.code = code
  }
}

const typed = (error) => new CabanaError(error.code, error.message)

/** A promise of the native half's. */
async function ask(promise) {
  try {
    return await promise
  } catch (error) {
    throw typed(error)
  }
}

/** A call of the native half that waits for nothing. */
function sync(call) {
  try {
    return call()
  } catch (error) {
    throw typed(error)
  }
}

module.exports = { CabanaError, ask, sync }
