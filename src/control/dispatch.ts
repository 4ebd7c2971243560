// From the name of a command and its arguments to its result.

import { BlockError } from "../base/errors.ts";
import { findCommand } from "./commands/all.ts";
import type { Daemon } from "./daemon.ts";
import type { JsonObject } from "./json-value.ts";
import { visit } from "./qapi/visitor.ts";

/** Runs a command and gives what it returns: an empty object where it returns nothing. @throws BlockError */
export async function runCommand(daemon: Daemon, name: string, args: JsonObject): Promise<unknown> {
  const command = findCommand(name);
  if (command === undefined) {
    throw new BlockError("COMMAND_NOT_FOUND", `The command ${name} has not been found`);
  }
  const checked = visit(command.data, args);
  const run = async () => command.run(daemon, checked as never);
  const result = await (name === "quit" ? run() : daemon.during(run));
  return result ?? {};
}
