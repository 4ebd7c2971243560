#!/usr/bin/env node
// A long line between two containers, where the kernel has no netem: what arrives leaves later, in order.
//
//   node delaying-proxy.js LISTEN-PORT HOST PORT DELAY-MS      each way takes DELAY-MS, or up to half more

import { createConnection, createServer, type Socket } from "node:net";
import { Prng } from "../../src/base/prng.ts";

const [listenPort, host, port, delay] = process.argv.slice(2);
const delayMs = Number(delay);
const prng = new Prng(Number(listenPort));

/**
 * Passes bytes on, each piece after its own delay but never before an earlier one; so it does with the end.
 */
function pass(from: Socket, to: Socket): void {
  // Timers of about the same time fire in any order; what they do comes from here, and keeps its order.
  const waiting: (() => void)[] = [];
  const later = (action: () => void) => {
    waiting.push(action);
    setTimeout(() => waiting.shift()!(), delayMs + prng.below(Math.ceil(delayMs / 2)));
  };
  from.on("data", (bytes: Buffer) => later(() => to.write(bytes)));
  from.on("end", () => later(() => to.end()));
  from.on("error", () => to.destroy());
  from.on("close", () => later(() => to.destroy()));
}

const server = createServer((near) => {
  const far = createConnection({ host: host!, port: Number(port) });
  for (const socket of [near, far]) socket.setNoDelay(true);
  pass(near, far);
  pass(far, near);
});
server.listen(Number(listenPort), () => console.log("passing on"));
