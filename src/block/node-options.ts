/**
 * Options of one node, in QAPI's spelling and nesting: what `blockdev-add` takes, checked against the schema.
 */
export interface NodeOptions {
  readonly driver: string;
  readonly "node-name"?: string;
  readonly "read-only"?: boolean;
  readonly "auto-read-only"?: boolean;
  readonly file?: string | NodeOptions;
  /** In place of `file`, for filters. */
  readonly image?: string | NodeOptions;
  readonly backing?: string | null | NodeOptions;
  readonly [option: string]: unknown;
}
