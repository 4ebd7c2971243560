// What a command of the monitor takes, in one notation that serves for parsing and for help.
//
//   block_stream device [base [speed]]        snapshot_blkdev [-n] device new-image-file [format]

import { BlockError } from "../../base/errors.ts";
import { parseSize } from "../../base/units.ts";

/** `flag` is `-n`; `size` and `speed` take suffixes: 10M. */
export interface ArgumentSpec {
  readonly name: string;
  readonly kind: "flag" | "text" | "size";
  readonly optional?: boolean;
}

export type ArgumentValues = ReadonlyMap<string, string | number | boolean>;

/** How the arguments stand in help: flags and optional ones in brackets. */
export function usageOf(specs: readonly ArgumentSpec[]): string {
  return specs
    .map((spec) => (spec.kind === "flag" || spec.optional ? `[${spec.name}]` : spec.name))
    .join(" ");
}

/** @throws BlockError EINVAL that names what is missing, wrong or too much */
export function parseArguments(
  command: string,
  specs: readonly ArgumentSpec[],
  words: readonly string[],
): ArgumentValues {
  const values = new Map<string, string | number | boolean>();
  const rest = [...words];
  const flags = specs.filter((spec) => spec.kind === "flag");
  while (rest.length > 0 && /^-[a-z]$/i.test(rest[0]!)) {
    const flag = rest.shift()!;
    if (!flags.some((spec) => spec.name === flag)) {
      throw new BlockError("EINVAL", `${command}: unsupported option ${flag}`);
    }
    values.set(flag, true);
  }
  for (const spec of specs) {
    if (spec.kind === "flag") continue;
    const word = rest.shift();
    if (word !== undefined) values.set(spec.name, parseValue(command, spec, word));
    else if (!spec.optional) throw new BlockError("EINVAL", `${command}: ${spec.name} expected`);
  }
  if (rest.length > 0) {
    throw new BlockError(
      "EINVAL",
      `${command}: extraneous characters at the end of line: '${rest.join(" ")}'`,
    );
  }
  return values;
}

function parseValue(command: string, spec: ArgumentSpec, word: string): string | number {
  if (spec.kind === "text") return word;
  const size = parseSize(word);
  if (size === undefined) {
    throw new BlockError(
      "EINVAL",
      `${command}: ${spec.name}: '${word}' is no size; examples: 65536, 64k, 10M, 1G`,
    );
  }
  return size;
}
