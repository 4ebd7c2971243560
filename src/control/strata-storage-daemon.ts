#!/usr/bin/env node
// The daemon as a program: qemu-storage-daemon's command line.

import { fileURLToPath } from "node:url";
import { runDaemonProgram } from "./daemon-program.ts";

process.exitCode = await runDaemonProgram(process.argv.slice(2), fileURLToPath(import.meta.url));
// Whatever of the host is still open (a terminal, a peer that does not read) does not keep a daemon that has
// ended.
process.exit();
