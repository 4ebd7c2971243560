// Foreign programs that the run needs, in this process's own time: the guests and samples go on meanwhile.

import { execFile } from "node:child_process";

export interface Outcome {
  readonly code: number;
  readonly said: string;
}

/** Runs a program to its end. @throws when it cannot be started or is killed */
export function runAnyhow(program: string, ...args: readonly string[]): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    execFile(program, args, { maxBuffer: 64 * 1024 * 1024 }, (error, stdout, stderr) => {
      if (error !== null && typeof error.code !== "number") reject(error);
      else resolve({ code: error === null ? 0 : Number(error.code), said: stdout === "" ? stderr : stdout });
    });
  });
}

/** Gives what the program says. @throws when its exit code is not 0 */
export async function run(program: string, ...args: readonly string[]): Promise<string> {
  const { code, said } = await runAnyhow(program, ...args);
  if (code !== 0) throw new Error(`${program} ${args.join(" ")} ended with ${code}: ${said.trim()}`);
  return said;
}
