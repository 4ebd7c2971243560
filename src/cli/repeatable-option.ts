import { Option } from "commander";

/** An option that may be given several times: the command gets all values in order, or an empty list. */
export function repeatable(flags: string, description: string): Option {
  return new Option(flags, `${description}; may be given several times`)
    .default([], "none")
    .argParser((one: string, before: readonly string[]) => [...before, one]);
}
