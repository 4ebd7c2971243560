import type { Clock } from "../../base/clock.ts";
import { BlockError } from "../../base/errors.ts";
import type { Logger } from "../../base/logger.ts";
import { CAREFUL, exposure, type ListeningRules } from "../exposure.ts";
import { isIdentifier } from "../identifiers.ts";
import { grantRights } from "../socket-rights.ts";
import { type ChardevBackend, openChardev } from "./backend.ts";
import type { Chardev, Frontend } from "./chardev.ts";
import type { SocketAddress } from "./socket-address.ts";

/** Character devices by id, and which of them are in use. */
export class ChardevTable {
  readonly #chardevs = new Map<string, Chardev>();
  readonly #used = new Set<string>();
  /** Ids of devices that are being opened. */
  readonly #opening = new Set<string>();
  readonly #logger: Logger;
  readonly #clock: Clock;
  readonly #listening: ListeningRules;

  constructor(logger: Logger, clock: Clock, listening: ListeningRules = CAREFUL) {
    this.#logger = logger;
    this.#clock = clock;
    this.#listening = listening;
  }

  /** Oldest first. */
  get all(): Chardev[] {
    return [...this.#chardevs.values()];
  }

  has(id: string): boolean {
    return this.#chardevs.has(id);
  }

  /** @throws BlockError in QEMU's words */
  async add(id: string, backend: ChardevBackend): Promise<void> {
    if (!isIdentifier(id)) throw new BlockError("EINVAL", "Parameter 'id' expects an identifier");
    if (this.#chardevs.has(id) || this.#opening.has(id)) {
      throw new BlockError("EEXIST", `Chardev with id '${id}' already exists`);
    }
    const onOpen = (address: SocketAddress) => this.#opened(address);
    this.#opening.add(id);
    try {
      this.#chardevs.set(id, await openChardev(id, backend, this.#clock, onOpen));
    } finally {
      this.#opening.delete(id);
    }
    this.#logger.debug(`chardev '${id}': ${this.#chardevs.get(id)!.filename}`);
  }

  /** A server listens: its socket gets its rights, and who can reach it is told. */
  #opened(address: SocketAddress): void {
    const { rights, insecure } = this.#listening;
    if (address.kind === "unix") grantRights(address.path, rights);
    const warning =
      address.kind === "inet" && !insecure ? exposure("monitor", address.host, address.port) : undefined;
    if (warning !== undefined) this.#logger.warn(warning);
  }

  /** Gives the device its user. @throws BlockError in QEMU's words */
  attach(id: string, frontend: Frontend): void {
    const chardev = this.#chardevs.get(id);
    if (chardev === undefined) throw new BlockError("EINVAL", `chardev "${id}" not found`);
    if (this.#used.has(id)) throw new BlockError("EBUSY", `chardev '${id}' is already in use`);
    this.#used.add(id);
    chardev.attach(frontend);
  }

  /** @throws BlockError in QEMU's words */
  async remove(id: string): Promise<void> {
    const chardev = this.#chardevs.get(id);
    if (chardev === undefined) throw new BlockError("EINVAL", `Chardev '${id}' not found`);
    if (this.#used.has(id)) throw new BlockError("EBUSY", `Chardev '${id}' is busy`);
    this.#chardevs.delete(id);
    await chardev.close();
  }

  async closeAll(): Promise<void> {
    const chardevs = this.all;
    this.#chardevs.clear();
    for (const chardev of chardevs) await chardev.close();
  }
}
