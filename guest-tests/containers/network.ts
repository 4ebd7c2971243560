// The containers of a test on a network of their own, and the ways in which one is cut off.

import { randomUUID } from "node:crypto";
import path from "node:path";
import {
  GenericContainer,
  Network,
  type StartedNetwork,
  type StartedTestContainer,
  Wait,
} from "testcontainers";
import { onTestFinished } from "vitest";
import { runAnyhow, ToolError } from "../harness/tool.ts";
import type { Engine } from "./engine.ts";
import { CHECKOUT, type Images } from "./images.ts";

/** The user of the image. */
export const DAEMON_USER = 1000;
export const NBD_PORT = 10809;
/** What Docker grants a container to end in, unless told otherwise. */
const GRACE_MS = 10_000;
/** What keeps a container of clients there. */
const CLIENT_PROGRAM = ["busybox", "sleep", "86400"];

/**
 * A container with a name on its network. (The package would connect it to the engine's default network too.)
 */
class NamedContainer extends GenericContainer {
  constructor(image: string, network: StartedNetwork, alias: string) {
    super(image);
    this.withNetwork(network);
    this.createOpts.NetworkingConfig = { EndpointsConfig: { [network.getName()]: { Aliases: [alias] } } };
  }
}

/** The daemon as docs/containers.md starts it: read-only, without capabilities or ways to get any. */
class LockedContainer extends NamedContainer {
  constructor(image: string, network: StartedNetwork, alias: string) {
    super(image, network, alias);
    this.hostConfig.ReadonlyRootfs = true;
    this.withDroppedCapabilities("ALL").withSecurityOpt("no-new-privileges").withTmpFs({ "/tmp": "" });
  }

  /** The image's own check, but often. */
  checkedEachSecond(): this {
    this.createOpts.Healthcheck = { Interval: 1_000_000_000 };
    return this;
  }
}

export interface DaemonPlan {
  /** Folder of this machine, or name of a volume, at /images. */
  readonly images: string;
  readonly command: readonly string[];
  readonly entrypoint?: string;
  /** Further volumes: what, and where. */
  readonly volumes?: Readonly<Record<string, string>>;
  /** Reached from this machine, and looked at as an engine looks at it. */
  readonly publish?: boolean;
  /** Other than the image's own. */
  readonly user?: string;
}

export interface ContainerState {
  readonly Status: string;
  readonly ExitCode: number;
  readonly Health?: { readonly Status: string };
}

export class TestNetwork {
  readonly #engine: Engine;
  readonly #images: Images;
  readonly #network: StartedNetwork;

  private constructor(engine: Engine, images: Images, network: StartedNetwork) {
    this.#engine = engine;
    this.#images = images;
    this.#network = network;
  }

  static async make(engine: Engine, images: Images): Promise<TestNetwork> {
    const network = await new Network().start();
    // The last to go: onTestFinished runs the newest first, containers before their network.
    onTestFinished(async () => {
      await network.stop();
    });
    return new TestNetwork(engine, images, network);
  }

  /** The daemon, called `strata` on this network. Ready when it takes clients. */
  async daemon(plan: DaemonPlan): Promise<Box> {
    const container = new LockedContainer(this.#images.daemon, this.#network, "strata")
      .withCommand([...plan.command])
      .withBindMounts(mounts({ [plan.images]: "/images", ...plan.volumes }))
      .withWaitStrategy(
        plan.entrypoint === undefined ? Wait.forLogMessage(/Ctrl-C ends this/) : Wait.forListeningPorts(),
      );
    if (plan.entrypoint !== undefined) container.withEntrypoint([plan.entrypoint]);
    if (plan.user !== undefined) container.withUser(plan.user);
    if (plan.publish === true) container.withExposedPorts(NBD_PORT).checkedEachSecond();
    return this.#start(container);
  }

  /** A container with NBD clients that waits for what it is told; `scratch` is a folder of this machine. */
  client(scratch: string, volumes: Readonly<Record<string, string>> = {}): Promise<Box> {
    const container = new NamedContainer(this.#images.clients, this.#network, "client")
      .withCommand(CLIENT_PROGRAM)
      .withWorkingDir("/scratch")
      .withBindMounts(mounts({ [scratch]: "/scratch", ...volumes }));
    return this.#start(container);
  }

  /** Somebody between client and daemon who keeps every piece for a while; called `far` on this network. */
  proxy(delayMs: number): Promise<Box> {
    const container = new LockedContainer(this.#images.daemon, this.#network, "far")
      .withEntrypoint(["node", "/app/dist/guest-tests/containers/delaying-proxy.js"])
      .withCommand([String(NBD_PORT), "strata", String(NBD_PORT), String(delayMs)])

      .withBindMounts(mounts({ [path.join(CHECKOUT, "dist/guest-tests")]: "/app/dist/guest-tests" }))
      .withWaitStrategy(Wait.forLogMessage(/passing on/));
    return this.#start(container);
  }

  /** Runs the image's program to its end; gives what became of it. */
  async task(plan: DaemonPlan): Promise<ContainerState> {
    const container = new LockedContainer(this.#images.daemon, this.#network, "task")
      .withCommand([...plan.command])
      .withBindMounts(mounts({ [plan.images]: "/images" }))
      .withWaitStrategy(Wait.forOneShotStartup());
    return (await this.#start(container)).state();
  }

  /** A new volume without anything in it; gives its name. */
  async volume(): Promise<string> {
    const docker = this.#engine.client.container.dockerode;
    const name = `strata-test-${randomUUID()}`;
    await docker.createVolume({ Name: name });
    onTestFinished(async () => {
      await docker.getVolume(name).remove({ force: true });
    });
    return name;
  }

  async #start(container: GenericContainer): Promise<Box> {
    return new Box(this.#engine, await container.start(), this.#network);
  }
}

function mounts(volumes: Readonly<Record<string, string>>) {
  return Object.entries(volumes).map(([source, target]) => ({ source, target, mode: "rw" as const }));
}

/** A running container. It is gone at the end of the test. */
export class Box {
  readonly #engine: Engine;
  readonly #container: StartedTestContainer;
  readonly #network: StartedNetwork;

  constructor(engine: Engine, container: StartedTestContainer, network: StartedNetwork) {
    this.#engine = engine;
    this.#container = container;
    this.#network = network;
    onTestFinished(async ({ task }) => {
      if (task.result?.state === "fail") console.error(await this.#lastWords());
      await this.end();
    });
  }

  /** Runs a program in it; gives what it says. @throws with that when its exit code is not 0 */
  async run(...command: readonly string[]): Promise<string> {
    const { exitCode, output } = await this.#container.exec([...command]);
    if (exitCode !== 0) {
      throw new ToolError(command.join(" "), { code: exitCode, stdout: output, stderr: "" });
    }
    return output;
  }

  /** What its main program has said. */
  async log(): Promise<string> {
    return String(await this.#handle.logs({ stdout: true, stderr: true, follow: false }));
  }

  async state(): Promise<ContainerState> {
    return (await this.#handle.inspect()).State;
  }

  /** A port of it, as this machine reaches it. */
  port(inside: number): number {
    return this.#container.getMappedPort(inside);
  }

  /** SIGTERM, and SIGKILL after Docker's time of grace; gives what became of it. */
  async stop(): Promise<ContainerState> {
    await this.#handle.stop({ t: GRACE_MS / 1000 });
    return this.state();
  }

  async kill(): Promise<void> {
    await this.#handle.kill({ signal: "SIGKILL" });
  }

  /** Takes it away, whatever its state; may be called again. */
  async end(): Promise<void> {
    // One that is gone or does not stand still refuses what does not fit it.
    await this.#handle.unpause().catch(() => undefined);
    await this.#handle.remove({ force: true, v: true }).catch((error: { statusCode?: number }) => {
      if (error.statusCode !== 404) throw error;
    });
  }

  /** All its programs stand still, and its connections stay. */
  async pause(): Promise<void> {
    await this.#handle.pause();
  }

  async resume(): Promise<void> {
    await this.#handle.unpause();
  }

  /** Pulls its cable: no packet goes either way, and nobody is told. */
  async disconnect(): Promise<void> {
    const network = this.#engine.client.network.getById(this.#network.getId());
    await network.disconnect({ Container: this.#handle.id, Force: true });
  }

  /** Delays every packet that leaves it, if this kernel can do so. */
  async delay(milliseconds: number): Promise<boolean> {
    const pid = (await this.#handle.inspect()).State.Pid;
    const words = ["qdisc", "add", "dev", "eth0", "root", "netem", "delay", `${milliseconds}ms`];
    const outcome = await runAnyhow("nsenter", `--net=/proc/${pid}/ns/net`, "tc", ...words).catch(
      () => undefined,
    );
    return outcome?.code === 0;
  }

  /** For a failed test: what its program said, and what became of it. */
  async #lastWords(): Promise<string> {
    const words = [await this.log(), JSON.stringify(await this.state())];
    return `container ${this.#container.getName()}:\n${words.join("\n")}`;
  }

  get #handle() {
    return this.#engine.client.container.getById(this.#container.getId());
  }
}
