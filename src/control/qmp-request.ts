// The envelope of a QMP request.

import { BlockError } from "../base/errors.ts";
import { emptyObject, isJsonObject, type JsonObject, type JsonValue } from "./json-value.ts";

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
