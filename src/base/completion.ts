/**
 * The result of an operation of the block layer: done when it is undefined, otherwise done when the promise
 * settles. An error is thrown, or rejects the promise; callers are right for both.
 */
export type Completion = void | Promise<void>;

/**
 * Done when both are; every one has settled before an error is handed up, so borrowed buffers are free then.
 */
export function both(first: Completion, second: Completion): Completion {
  if (first === undefined) return second;
  if (second === undefined) return first;
  return settleAll([first, second]);
}

/** Waits for all, then rejects with the first error in order of the list, if any. */
export async function settleAll(parts: readonly Completion[]): Promise<void> {
  const results = await Promise.allSettled(parts);
  for (const result of results) if (result.status === "rejected") throw result.reason;
}

/** Turns what `operation` throws at once into a rejection: for callers that handle promises only. */
export async function promised<T>(operation: () => T | Promise<T>): Promise<T> {
  return operation();
}
