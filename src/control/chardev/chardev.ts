// Character devices: where a monitor's bytes come from and go to.
//
//   1. A device has one peer at a time; a monitor is told of each one that comes and goes.
//   2. Without a monitor nobody is listened to: peers wait.

import type { Duplex, Writable } from "node:stream";

/** Who sits at the other end now. */
export interface Peer {
  readonly input: Duplex | NodeJS.ReadStream | undefined;
  readonly output: Writable | undefined;
  /** Hangs up. */
  close(): void;
}

/** What uses a device: a monitor. */
export interface Frontend {
  /** A peer has come; its input has not begun to flow. */
  opened(peer: Peer): void;
}

export interface Chardev {
  readonly id: string;
  /** As query-chardev tells it. */
  readonly filename: string;
  readonly isOpen: boolean;
  /** Gives the device its one user. */
  attach(frontend: Frontend): void;
  /** Hangs up and lets go of what the host gave. */
  close(): Promise<void>;
}
