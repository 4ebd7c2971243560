import { errorMessage } from "../../base/errors.ts";

/** Steps back, taken last first when a command cannot be finished. */
export class UndoList {
  readonly #steps: (() => void | Promise<void>)[] = [];

  push(step: () => void | Promise<void>): void {
    this.#steps.push(step);
  }

  /** Takes all of them, whatever becomes of one; gives what went wrong, in words. */
  async run(): Promise<string[]> {
    const failures: string[] = [];
    for (const step of this.#steps.splice(0).reverse()) {
      try {
        await step();
      } catch (error) {
        failures.push(errorMessage(error));
      }
    }
    return failures;
  }
}
