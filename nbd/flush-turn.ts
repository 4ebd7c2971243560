// Replies of requests that end later (a promise settled) wait for the end of the loop's turn, so that
// everything that one turn completes leaves in one write per connection. One immediate serves all
// connections.

export interface Flushable {
  /** Owned by this file. */
  flushPending: boolean;
  flushNow(): void;
}

let waiting: Flushable[] = [];

export function flushAtEndOfTurn(connection: Flushable): void {
  if (connection.flushPending) return;
  connection.flushPending = true;
  if (waiting.push(connection) === 1) setImmediate(flushAll);
}

function flushAll(): void {
  const connections = waiting;
  waiting = [];
  for (const connection of connections) {
    connection.flushPending = false;
    connection.flushNow();
  }
}
