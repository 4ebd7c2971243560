import type { Clock } from "../base/clock.ts";
import type { ControlEnvironment } from "./control-directory.ts";
import type { Terminal } from "./terminal.ts";

/** What the world around a command is. */
export interface CommandContext {
  readonly terminal: Terminal;
  readonly environment: ControlEnvironment;
  readonly clock: Clock;
  /**
   * Calls back at the first Ctrl-C or request to end instead of ending the process; the result undoes that.
   */
  onInterrupt(callback: () => void): () => void;
}

/** `help` of a command: a blank line, then examples. */
export function examples(...lines: readonly string[]): string {
  return `\nExample${lines.length > 1 ? "s" : ""}:\n${lines.map((line) => `  ${line}\n`).join("")}`;
}
