// --daemonize: the work is done by a process of its own; the one that was started waits until it is ready.
//
//   started process                       the daemon
//   spawns it, waits     ------------->   opens everything from the directory in which it was started
//   exits 0              <-- "ready" --   serves, without a terminal
//   or prints and 1      <-- reason  --   exits 1
//
// It stays in the directory in which it was started: relative names of images, sockets and the pid file are
// used again later (an image is reopened for writing, a socket's name is removed), and have to mean the same
// then.
//
// Node cannot fork, so the daemon is the same program again, told by an environment variable where to report.

import { spawn } from "node:child_process";
import fs from "node:fs";

/** Descriptor of the pipe on which the daemon tells how its start went. */
const REPORT_FD = 3;
const MARK = "STRATA_DAEMON_REPORTS";
const READY = "ready\n";

/** Whether this process is the one that was spawned to be the daemon. */
export function isBackgroundProcess(environment: NodeJS.ProcessEnv): boolean {
  return environment[MARK] === "1";
}

/**
 * Starts the daemon with the same arguments; settles to the exit code for this process. `tell` gets the
 * reason.
 */
export async function startInBackground(
  script: string,
  args: readonly string[],
  tell: (text: string) => void,
) {
  const child = spawn(process.execPath, [...process.execArgv, script, ...args], {
    detached: true,
    env: { ...process.env, [MARK]: "1" },
    stdio: ["ignore", "ignore", "ignore", "pipe"],
  });
  let heard = "";
  const pipe = child.stdio[REPORT_FD] as NodeJS.ReadableStream;
  pipe.setEncoding("utf8");
  const ready = await new Promise<boolean>((resolve) => {
    child.once("error", (error) => {
      heard += error.message + "\n";
      resolve(false);
    });
    pipe.on("data", (text: string) => {
      heard += text;
      if (heard.endsWith(READY)) resolve(true);
    });
    pipe.once("close", () => resolve(heard.endsWith(READY)));
  });
  child.unref();
  tell(ready ? heard.slice(0, -READY.length) : heard || "the daemon ended before it was ready\n");
  return ready ? 0 : 1;
}

/** For the daemon: how it tells the process that waits. */
export const background = {
  /** What it says before it is ready: warnings, or why it does not start. */
  say(text: string): void {
    fs.writeSync(REPORT_FD, text);
  },
  /** Ready: from here on nobody listens. */
  ready(): void {
    fs.writeSync(REPORT_FD, READY);
    fs.closeSync(REPORT_FD);
  },
};
