// From an error to what the user sees: one line on stderr and an exit code, never a stack.

import { AssertionError } from "../base/assert.ts";
import { BlockError, ERROR_CODES, errorMessage } from "../base/errors.ts";
import { EXIT_CODES } from "./exit-codes.ts";

/** A wrong command line, beyond what the parser of options notices. */
export function usageError(message: string): BlockError {
  return new BlockError("USAGE", message);
}

/** Ends the command with an exit code other than 0 or 1, and with a line where there is something to say. */
export class ExitRequest extends Error {
  override readonly name = "ExitRequest";
  readonly exitCode: number;

  constructor(exitCode: number, message = "") {
    super(message);
    this.exitCode = exitCode;
  }
}

/**
 * What a thrown value means to the shell. A programmer's error shows where it happened: it is to be reported.
 */
export function failureOf(error: unknown): { readonly line: string; readonly exitCode: number } {
  if (error instanceof ExitRequest) {
    return { line: error.message === "" ? "" : `strata: ${error.message}`, exitCode: error.exitCode };
  }
  if (error instanceof BlockError) {
    return { line: `strata: ${oneLine(error.message)}`, exitCode: ERROR_CODES[error.code].exit };
  }
  if (error instanceof AssertionError || !isHostError(error)) {
    const where = error instanceof Error ? (error.stack ?? error.message) : String(error);
    return {
      line: `strata: this is a bug of strata, please report it: ${where}`,
      exitCode: EXIT_CODES.ERROR.code,
    };
  }
  return { line: `strata: ${oneLine(errorMessage(error))}`, exitCode: EXIT_CODES.ERROR.code };
}

function isHostError(error: unknown): boolean {
  return typeof (error as { code?: unknown } | null)?.code === "string";
}

/** Drops a leading 'Error:'; a line that begins a sentence ends the one before. */
function oneLine(text: string): string {
  return text
    .replace(/^Error: /, "")
    .replace(/(\w)["']?\s*\n\s*(?=[A-Z])/g, (end) => `${end.trimEnd()}. `)
    .replace(/\s*\n\s*/g, " ");
}

/** The same error with what to do about it, where another process uses the image. */
export function withLockHelp(error: unknown, help: string): unknown {
  if (!(error instanceof BlockError) || error.code !== "IMAGE_LOCKED") return error;
  return new BlockError(error.code, `${error.message}\n${help}`, error);
}
