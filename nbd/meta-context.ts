// Meta contexts: the queries of LIST_META_CONTEXT and SET_META_CONTEXT, and what they select.

import { OptionError, type OptionReader } from "./option-reader.ts";
import { STRING_BYTES_MAX } from "./protocol.ts";

export const BASE_ALLOCATION = "base:allocation";
/** More queries than contexts exist are of no use; this bounds the work of one option. */
const QUERIES_MAX = 10_000;

/**
 * Reads `name length u32 | name | query count u32 | { length u32, query } ...`, to the last byte.
 * @throws OptionError where lengths or counts do not fit the data, or something is left over.
 */
export function readQueries(reader: OptionReader): { name: Buffer; queries: string[] } {
  const name = reader.string32("export name");
  const count = reader.u32("query count");
  if (count > QUERIES_MAX) throw new OptionError("too many meta context queries");
  const queries: string[] = [];
  for (let i = 0; i < count; i++) {
    const query = reader.string32("query");
    if (query.length > STRING_BYTES_MAX) throw new OptionError("a meta context query is too long");
    queries.push(query.toString("utf8"));
  }
  reader.end();
  return { name, queries };
}

/**
 * Contexts to list: all without queries; `base:` stands for all of its namespace; what is unknown is ignored.
 */
export function listContexts(available: readonly string[], queries: readonly string[]): string[] {
  if (queries.length === 0) return [...available];
  const asked = new Set(queries);
  return available.filter((context) => asked.has(context) || asked.has(namespaceOf(context)));
}

/** Contexts to select: those named in full, each once; the index in the result is the id. */
export function selectContexts(available: readonly string[], queries: readonly string[]): string[] {
  const asked = new Set(queries);
  return available.filter((context) => asked.has(context));
}

function namespaceOf(context: string): string {
  return context.slice(0, context.indexOf(":") + 1);
}
