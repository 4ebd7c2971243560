// The one place with a timer: how long a test listens before it gives up. No test ever waits for it to pass.

/** Generous: a loaded build server must not fail a test. */
export const PATIENCE_MS = 90_000;

/** The promise, or an error that says what was missing. */
export function within<T>(promise: Promise<T>, missing: () => string, patienceMs = PATIENCE_MS): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const lost = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(missing())), patienceMs);
  });
  return Promise.race([promise, lost]).finally(() => clearTimeout(timer));
}

/** A promise that is awaited later: should it fail before, that waits until then too. */
export function later<T>(promise: Promise<T>): Promise<T> {
  promise.catch(() => undefined);
  return promise;
}
