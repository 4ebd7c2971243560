// From a QMP request to its result: the envelope, the arguments, the command.

import { BlockError } from "../base/errors.ts";
import { findCommand } from "./commands/all.ts";
import type { Daemon } from "./daemon.ts";
import { emptyObject, isJsonObject, type JsonObject, type JsonValue } from "./json-value.ts";
import { visit } from "./qapi/visitor.ts";

/** A request that has the right form. */
export interface Request {
  readonly execute: string;
  readonly arguments: JsonObject;
}

/** @throws BlockError in QEMU's words */
export function checkRequest(value: JsonValue): Request {
  if (!isJsonObject(value)) throw new BlockError("EINVAL", "QMP input must be a JSON object");
  for (const [name, member] of Object.entries(value)) {
    switch (name) {
      case "execute":
        if (typeof member === "string") break;
        throw new BlockError("EINVAL", `QMP input member '${name}' must be a string`);
      case "arguments":
        if (isJsonObject(member)) break;
        throw new BlockError("EINVAL", "QMP input member 'arguments' must be an object");
      case "id":
        break;
      default:
        throw new BlockError("EINVAL", `QMP input member '${name}' is unexpected`);
    }
  }
  if (value["execute"] === undefined) throw new BlockError("EINVAL", "QMP input lacks member 'execute'");
  return {
    execute: value["execute"] as string,
    arguments: (value["arguments"] as JsonObject | undefined) ?? emptyObject(),
  };
}

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
