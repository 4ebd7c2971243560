import type { LentData } from "./backend.ts";
import type { ExtentList, ReadPiece } from "./extent-list.ts";
import type { HeldBuffer } from "./held-buffer.ts";
import { RequestHeader } from "./protocol.ts";

/** Who is told when a pending request ends. */
export interface RequestOwner {
  completed(request: PendingRequest): void;
  failed(request: PendingRequest, error: unknown): void;
}

/**
 * A request whose backend answered with a promise. Pooled together with its two callbacks, so that waiting
 * for a promise makes no closure. A request that ends at once needs none of this.
 */
export class PendingRequest extends RequestHeader {
  owner: RequestOwner | undefined;
  /** The data read or written, held once by this request. */
  block: HeldBuffer | undefined;
  /** What it counts for in the session's limit. */
  payloadBytes = 0;
  /**
   * READ: where the reply's head goes in `block`, the data right behind; -1 when the block holds data only.
   */
  headAt = -1;
  /** READ: `block` is an arena block of the outgoing queue. */
  detached = false;
  /** WRITE: `block` is a receive block. */
  inPlace = false;
  /** READ with holes. */
  pieces: ReadPiece[] | undefined;
  /** READ: the data, where it is lent. */
  lent: LentData | undefined;
  /** BLOCK_STATUS: one list per context asked for, and the contexts' ids. */
  extents: ExtentList[] | undefined;
  contextIds: readonly number[] | undefined;

  readonly done = () => this.owner!.completed(this);
  readonly fail = (error: unknown) => this.owner!.failed(this, error);
}

const free: PendingRequest[] = [];
const FREE_MAX = 8192;

export function takeRequest(owner: RequestOwner, header: RequestHeader): PendingRequest {
  const request = free.pop() ?? new PendingRequest();
  request.copyFrom(header);
  request.owner = owner;
  return request;
}

export function giveRequest(request: PendingRequest): void {
  request.owner = undefined;
  request.block = undefined;
  request.headAt = -1;
  request.detached = request.inPlace = false;
  request.pieces = undefined;
  request.lent = undefined;
  request.extents = undefined;
  request.contextIds = undefined;
  if (free.length < FREE_MAX) free.push(request);
}
