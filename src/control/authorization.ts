// authz objects: which of the clients that TLS lets in may go on, by their names.

import { statSync } from "node:fs";
import { BlockError, errorMessage } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import { MiB } from "../base/units.ts";
import { fsError } from "../sys/host-error.ts";
import { readWholeFile } from "../sys/whole-file.ts";
import { parseJson } from "./json-stream.ts";
import { authzListOptions } from "./qapi/object.ts";
import type { Infer } from "./qapi/types.ts";
import { visit } from "./qapi/visitor.ts";

/** Some hundred thousand rules. */
const LIST_BYTES_MAX = 16 * MiB;

/** Whether a client of this name may go on. */
export type Authorization = (identity: string) => boolean;

type ListOptions = Infer<typeof authzListOptions>;

/** The first rule that fits decides, otherwise the policy; without one nobody comes in. */
export function listAuthorization({ policy = "deny", rules = [] }: ListOptions): Authorization {
  const tests = rules.map((rule) => ({
    fits: rule.format === "glob" ? globMatcher(rule.match) : (identity: string) => identity === rule.match,
    policy: rule.policy,
  }));
  return (identity) => (tests.find(({ fits }) => fits(identity))?.policy ?? policy) === "allow";
}

/** `*` stands for any text, `?` for one character. Linear in the text for each star: no backtracking bomb. */
function globMatcher(pattern: string): (text: string) => boolean {
  const parts = [...pattern];
  return (text) => {
    const characters = [...text];
    let [at, next, star, starAt] = [0, 0, -1, 0];
    while (at < characters.length) {
      if (parts[next] === "*") [star, starAt, next] = [next, at, next + 1];
      else if (next < parts.length && (parts[next] === "?" || parts[next] === characters[at])) {
        at++;
        next++;
      } else if (star < 0) return false;
      else [next, at] = [star + 1, ++starAt];
    }
    while (parts[next] === "*") next++;
    return next === parts.length;
  };
}

/** A list in a JSON file; with `refresh` a file that has changed counts from the next client on. */
export function fileAuthorization(
  { filename, refresh = true }: { readonly filename: string; readonly refresh?: boolean },
  logger: Logger,
): Authorization {
  let seen = versionOf(filename);
  let list = readList(filename);
  return (identity) => {
    try {
      const version = refresh ? versionOf(filename) : seen;
      if (version !== seen) {
        list = readList(filename);
        seen = version;
      }
      return list(identity);
    } catch (error) {
      logger.warn(`clients are refused until their list can be read: ${errorMessage(error)}`);
      return false;
    }
  };
}

function versionOf(filename: string): string {
  try {
    const { mtimeMs, size, ino } = statSync(filename);
    return `${mtimeMs} ${size} ${ino}`;
  } catch (error) {
    throw fsError(error, `Unable to read '${filename}'`);
  }
}

function readList(filename: string): Authorization {
  const text = readWholeFile(filename, LIST_BYTES_MAX, `Unable to read '${filename}'`).toString("utf8");
  try {
    return listAuthorization(visit(authzListOptions, parseJson(text)));
  } catch (error) {
    throw new BlockError("EINVAL", `'${filename}' holds no list of rules: ${errorMessage(error)}`, error);
  }
}
