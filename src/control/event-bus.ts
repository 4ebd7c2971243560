import type { WallClock } from "./wall-clock.ts";

/** An event as it goes out: timestamp first, as the reference writes it. */
export interface QmpEvent {
  readonly timestamp: { readonly seconds: number; readonly microseconds: number };
  readonly event: string;
  readonly data: Readonly<Record<string, unknown>>;
}

/** Hands every event to every listener, in the order in which they happen. */
export class EventBus {
  readonly #listeners = new Set<(event: QmpEvent) => void>();
  readonly #wallClock: WallClock;

  constructor(wallClock: WallClock) {
    this.#wallClock = wallClock;
  }

  /** Calls back for every event from now on; the result ends that. */
  listen(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  emit(event: string, data: Readonly<Record<string, unknown>>): void {
    const now = this.#wallClock.nowMicroseconds();
    const timestamp = { seconds: Math.floor(now / 1e6), microseconds: now % 1e6 };
    for (const listener of [...this.#listeners]) listener({ timestamp, event, data });
  }
}
