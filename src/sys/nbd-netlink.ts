// The kernel's nbd driver over generic netlink (linux/nbd-netlink.h): connections that are open and through
// their handshake become a block device, and no process has to stay behind for it.
//
//   1. Without an index the kernel takes a device that is free, or makes one, under its own lock: two who ask
//      at the same time get different ones.
//   2. The device is there, with its size, when `connect` returns.

import { BlockError } from "../base/errors.ts";
import {
  attribute,
  attributesOf,
  decodeAttributes,
  MessageType,
  nestedAttribute,
  stringAttribute,
  u32Attribute,
  u64Attribute,
} from "./netlink-message.ts";
import type { NetlinkCalls, Question } from "./netlink-socket.ts";

const FAMILY_NAME = "nbd";
const VERSION = 1;

// linux/genetlink.h
const CTRL_CMD_GETFAMILY = 3;
const CTRL_ATTR_FAMILY_ID = 1;
const CTRL_ATTR_FAMILY_NAME = 2;

const Command = { CONNECT: 1, DISCONNECT: 2, RECONFIGURE: 3, STATUS: 5 } as const;
const Attr = {
  INDEX: 1,
  SIZE_BYTES: 2,
  BLOCK_SIZE_BYTES: 3,
  TIMEOUT: 4,
  SERVER_FLAGS: 5,
  CLIENT_FLAGS: 6,
  SOCKETS: 7,
  DEAD_CONN_TIMEOUT: 8,
  DEVICE_LIST: 9,
  BACKEND_IDENTIFIER: 10,
} as const;
const SOCK_ITEM = 1;
const SOCK_FD = 1;
const DEVICE_INDEX = 1;
const DEVICE_CONNECTED = 2;

/** What a device is made of. */
export interface NbdConnect {
  /** N of /dev/nbdN; the kernel chooses where it is left away. */
  readonly index?: number | undefined;
  readonly size: number;
  readonly blockSize: number;
  /** Transmission flags of the export. */
  readonly serverFlags: number;
  /** Sockets in the transmission phase, simple replies. The kernel takes hold of them: ours may be closed. */
  readonly descriptors: readonly number[];
  /** A connection that does not answer for so long is given up. Never where it is left away. */
  readonly timeoutSeconds?: number | undefined;
  /** How long requests wait for a new connection when the last one is dead. Not at all where left away. */
  readonly deadSeconds?: number | undefined;
  /** Shown in /sys/block/nbdN/backend, by kernels since 5.14. */
  readonly backend?: string | undefined;
}

/** A device of the kernel; `connected` also when it is only open. */
export interface NbdStatus {
  readonly index: number;
  readonly connected: boolean;
}

export class NbdNetlink {
  readonly #netlink: NetlinkCalls;
  readonly #family: number;

  private constructor(netlink: NetlinkCalls, family: number) {
    this.#netlink = netlink;
    this.#family = family;
  }

  /** undefined when the kernel has no nbd driver, or not for this network namespace. */
  static find(netlink: NetlinkCalls): NbdNetlink | undefined {
    try {
      const replies = netlink.ask(familyQuestion(FAMILY_NAME), "cannot ask the kernel for nbd");
      const id = replies.map((reply) => attributesOf(reply).get(CTRL_ATTR_FAMILY_ID)).find(Boolean);
      return id === undefined ? undefined : new NbdNetlink(netlink, id.readUInt16LE(0));
    } catch (error) {
      if (error instanceof BlockError && error.code === "ENOENT") return undefined;
      throw error;
    }
  }

  /** Makes a device; gives its index. @throws BlockError EBUSY when the named one is in use, EPERM ... */
  connect(plan: NbdConnect): number {
    const name = plan.index === undefined ? "a free nbd device" : `/dev/nbd${plan.index}`;
    const replies = this.#netlink.ask(
      this.#question(Command.CONNECT, connectAttributes(plan)),
      connectText(name),
    );
    for (const reply of replies) {
      const index = attributesOf(reply).get(Attr.INDEX);
      if (index !== undefined) return index.readUInt32LE(0);
    }
    if (plan.index !== undefined) return plan.index;
    throw new BlockError("EIO", "the kernel connected an nbd device and did not say which");
  }

  /** Gives a device new connections for its dead ones. @throws BlockError ENOSPC when none is dead */
  reconnect(plan: NbdConnect & { readonly index: number }): void {
    const attributes = connectAttributes(plan);
    this.#netlink.ask(this.#question(Command.RECONFIGURE, attributes), connectText(`/dev/nbd${plan.index}`));
  }

  /** Ends a device's connections; requests under way fail. */
  disconnect(index: number): void {
    const attributes = [u32Attribute(Attr.INDEX, index)];
    this.#netlink.ask(this.#question(Command.DISCONNECT, attributes), `cannot disconnect /dev/nbd${index}`);
  }

  /** All devices. */
  status(): NbdStatus[] {
    const replies = this.#netlink.ask(this.#question(Command.STATUS, []), "cannot list the nbd devices");
    const found: NbdStatus[] = [];
    for (const reply of replies) {
      const list = attributesOf(reply).get(Attr.DEVICE_LIST);
      if (list === undefined) continue;
      for (const [, item] of decodeAttributes(list)) {
        const members = new Map(decodeAttributes(item));
        const index = members.get(DEVICE_INDEX)?.readUInt32LE(0);
        if (index !== undefined) found.push({ index, connected: members.get(DEVICE_CONNECTED)?.[0] === 1 });
      }
    }
    return found;
  }

  #question(command: number, attributes: readonly Buffer[]): Question {
    return { type: this.#family, command, version: VERSION, attributes };
  }
}

export function familyQuestion(name: string): Question {
  return {
    type: MessageType.GENERIC_CONTROL,
    command: CTRL_CMD_GETFAMILY,
    version: 1,
    attributes: [stringAttribute(CTRL_ATTR_FAMILY_NAME, name)],
  };
}

/** What CONNECT and RECONFIGURE carry. */
export function connectAttributes(plan: NbdConnect): Buffer[] {
  const sockets = plan.descriptors.map((fd) => nestedAttribute(SOCK_ITEM, [u32Attribute(SOCK_FD, fd)]));
  const attributes: Buffer[] = [];
  if (plan.index !== undefined) attributes.push(u32Attribute(Attr.INDEX, plan.index));
  attributes.push(
    u64Attribute(Attr.SIZE_BYTES, plan.size),
    u64Attribute(Attr.BLOCK_SIZE_BYTES, plan.blockSize),
    u64Attribute(Attr.SERVER_FLAGS, plan.serverFlags),
    nestedAttribute(Attr.SOCKETS, sockets),
  );
  if (plan.timeoutSeconds !== undefined) attributes.push(u64Attribute(Attr.TIMEOUT, plan.timeoutSeconds));
  if (plan.deadSeconds !== undefined) attributes.push(u64Attribute(Attr.DEAD_CONN_TIMEOUT, plan.deadSeconds));
  if (plan.backend !== undefined) {
    attributes.push(attribute(Attr.BACKEND_IDENTIFIER, Buffer.from(`${plan.backend}\0`)));
  }
  return attributes;
}

function connectText(name: string): string {
  return `cannot connect ${name}`;
}
