/**
 * A broken invariant of this program: a programmer's error, never the world's (guest, peer, host, image).
 * The world gets a {@link BlockError}.
 */
export class AssertionError extends Error {
  override readonly name = "AssertionError";
}

/** Throws {@link AssertionError} unless `condition` holds. One condition per call. */
export function assert(condition: boolean, message: string): asserts condition {
  if (!condition) throw new AssertionError(message);
}
