'use strict'

/** Events that wait for a listener; further ones are lost to it. */
const WAITING = 1024

/** What happens to a machine, for whoever listens. */
class Events {
  #listeners = new Set()
  #over = false

  /** Null is the end. */
  tell(event) {
    this.#over ||= event === null
    for (const listener of this.#listeners) listener.take(event)
  }

  listen(signal) {
    const listener = new Listener((gone) => this.#listeners.delete(gone))
    this.#listeners.add(listener)
    if (this.#over) listener.take(null)
    if (signal?.aborted) listener.return()
    else signal?.addEventListener('abort', () => listener.return(), { once: true })
    return listener
  }
}

/** An async iterator. */
class Listener {
  #events = []
  #asks = []
  #over = false
  #leave
  /** Keeps the program alive while somebody waits: what tells of events does not. */
  #waiting

  constructor(leave) {
    this.#leave = leave
  }

  take(event) {
    if (event === null) this.#end()
    else if (this.#asks.length > 0) {
      this.#asks.shift()({ value: event, done: false })
      this.#wait()
    } else if (this.#events.length < WAITING) this.#events.push(event)
  }

  #end() {
    this.#over = true
    this.#leave(this)
    for (const ask of this.#asks.splice(0)) ask({ value: undefined, done: true })
    this.#wait()
  }

  #wait() {
    if (this.#asks.length > 0) this.#waiting ??= setInterval(() => {}, 2 ** 30)
    else {
      clearInterval(this.#waiting)
      this.#waiting = undefined
    }
  }

  async next() {
    if (this.#events.length > 0) return { value: this.#events.shift(), done: false }
    if (this.#over) return { value: undefined, done: true }
    return new Promise((resolve) => {
      this.#asks.push(resolve)
      this.#wait()
    })
  }

  async return() {
    this.#events = []
    this.#end()
    return { value: undefined, done: true }
  }

  [Symbol.asyncIterator]() {
    return this
  }
}

module.exports = { Events }
