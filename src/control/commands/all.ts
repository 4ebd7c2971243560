import type { Command } from "../command.ts";
import { EXPORT_COMMANDS } from "./exports.ts";
import { IMAGE_COMMANDS } from "./images.ts";
import { JOB_COMMANDS } from "./jobs.ts";
import { NODE_COMMANDS } from "./nodes.ts";
import { processCommands } from "./process.ts";
import { SNAPSHOT_COMMANDS } from "./snapshots.ts";
import { STRATA_COMMANDS } from "./strata-view.ts";
import { STREAM_COMMANDS } from "./stream.ts";

/** Every QMP command. */
export const COMMANDS: readonly Command[] = [
  ...NODE_COMMANDS,
  ...EXPORT_COMMANDS,
  ...SNAPSHOT_COMMANDS,
  ...STREAM_COMMANDS,
  ...JOB_COMMANDS,
  ...IMAGE_COMMANDS,
  ...STRATA_COMMANDS,
  ...processCommands(() => COMMANDS),
];

const BY_NAME: ReadonlyMap<string, Command> = new Map(COMMANDS.map((command) => [command.name, command]));

export function findCommand(name: string): Command | undefined {
  return BY_NAME.get(name);
}
