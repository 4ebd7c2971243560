#!/usr/bin/env node
import { readFileSync } from "node:fs";
import { systemClock } from "../base/clock.ts";
import { realEnvironment } from "./control-directory.ts";
import { runCommandLine } from "./program.ts";
import { realTerminal } from "./terminal.ts";

/** The package's description stands two folders above the built program, which is dist/src/cli. */
function packageVersion(): string {
  const text = readFileSync(new URL("../../../package.json", import.meta.url), "utf8");
  return (JSON.parse(text) as { version: string }).version;
}

/** Calls back at the first of the signals that ask a program to end. A second one ends it at once. */
function onInterrupt(callback: () => void): () => void {
  const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
  const forget = () => {
    for (const signal of signals) process.off(signal, handle);
  };
  const handle = () => {
    forget();
    callback();
  };
  for (const signal of signals) process.on(signal, handle);
  return forget;
}

// Whoever reads our output may leave early (`strata map | head`): that is no error of ours.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(0);
  throw error;
});

const context = { terminal: realTerminal, environment: realEnvironment(), clock: systemClock, onInterrupt };
process.exitCode = await runCommandLine(process.argv.slice(2), packageVersion(), context);
