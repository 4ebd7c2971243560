import type { Daemon } from "./daemon.ts";
import { empty, type Infer, type QapiType } from "./qapi/types.ts";

/** A QMP command: its schema, its text for people, and what it does. */
export interface Command {
  readonly name: string;
  readonly doc: string;
  readonly data: QapiType;
  readonly returns: QapiType;
  /** Gets arguments that the visitor has let through. @throws BlockError for what the client is told */
  readonly run: (daemon: Daemon, args: never) => unknown;
}

interface CommandDefinition<D extends QapiType> {
  readonly name: string;
  readonly doc: string;
  readonly data: D;
  readonly returns?: QapiType;
  readonly run: (daemon: Daemon, args: Infer<D>) => unknown;
}

export function command<D extends QapiType>(definition: CommandDefinition<D>): Command {
  return { returns: empty, ...definition };
}
