// A Docker engine for the tests: the one that is there, or one of our own.
//
//   1. An engine that answers (DOCKER_HOST, or the usual socket) is used as it is; what a test made there it
//      takes away again.
//   2. Otherwise root starts `dockerd` with everything in a temporary folder: sockets, images, networks' name
//      spaces. It changes no firewall, no forwarding and no bridge of the host. At the end it is stopped and
//      the folder removed; should the test process die before, the kernel ends it (setpriv).
//   3. Where neither is possible, a sentence says why, and the suite is skipped.

import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { get } from "node:http";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { type ContainerRuntimeClient, getContainerRuntimeClient } from "testcontainers";

/** How long an engine may take to answer after its start; it is half a second on an idle machine. */
const START_MS_MAX = 30_000;
/** How long it may take to end, with whatever containers are left, before it is killed. */
const STOP_MS_MAX = 20_000;

export interface Engine {
  readonly client: ContainerRuntimeClient;
  /** What it is, for people. */
  readonly description: string;
  /** Whether everything in it goes away with it. */
  readonly isOurs: boolean;
  stop(): Promise<void>;
}

/** Finds or starts an engine; a sentence when there is none to be had. */
export async function findEngine(): Promise<Engine | string> {
  // The package's own cleaner is an image that would have to be pulled.
  process.env["TESTCONTAINERS_RYUK_DISABLED"] = "true";
  if (process.env["DOCKER_HOST"] !== undefined || existsSync("/var/run/docker.sock")) {
    const client = await getContainerRuntimeClient().catch((error: Error) => error.message);
    if (typeof client !== "string")
      return { client, ...describe(client), isOurs: false, stop: async () => {} };
    if (process.env["DOCKER_HOST"] !== undefined)
      return `the engine at DOCKER_HOST does not answer: ${client}`;
  }
  if (process.platform !== "linux" || process.getuid?.() !== 0) {
    return "no Docker engine answers, and only root can start one";
  }
  if (!isProgram("dockerd")) return "no Docker engine answers, and dockerd is not installed (docker.io)";
  return startEngine();
}

async function startEngine(): Promise<Engine | string> {
  const directory = mkdtempSync(path.join(tmpdir(), "strata-engine-"));
  const daemon = startDaemon(directory);
  const socket = path.join(directory, "docker.sock");
  const ended = new Promise<void>((resolve) => daemon.once("exit", () => resolve()));
  const stop = async () => {
    await stopDaemon(daemon, ended);
    removeDirectory(directory);
  };
  const deadline = performance.now() + START_MS_MAX;
  while (!(await answers(socket))) {
    if (daemon.exitCode !== null || performance.now() > deadline) {
      const words = lastLines(path.join(directory, "log"));
      await stop();
      return `dockerd does not start here:\n${words}`;
    }
    await pause(100);
  }
  process.env["DOCKER_HOST"] = `unix://${socket}`;
  // Without a default bridge the package could not find out where published ports are.
  process.env["TESTCONTAINERS_HOST_OVERRIDE"] = "localhost";
  try {
    const client = await getContainerRuntimeClient();
    const empty = () => removeAll(client).finally(stop);
    return { client, ...describe(client), isOurs: true, stop: empty };
  } catch (error) {
    await stop();
    throw error;
  }
}

function startDaemon(directory: string): ChildProcess {
  const inside = (name: string) => path.join(directory, name);
  const log = openSync(inside("log"), "w");
  const leaveTheHostAlone = ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"];
  const places = [
    `--host=unix://${inside("docker.sock")}`,
    `--data-root=${inside("data")}`,
    `--exec-root=${inside("exec")}`,
    `--pidfile=${inside("pid")}`,
  ];
  const words = ["dockerd", ...places, ...leaveTheHostAlone];
  const [program, ...args] = isProgram("setpriv") ? ["setpriv", "--pdeathsig", "TERM", ...words] : words;
  const daemon = spawn(program!, args, { stdio: ["ignore", log, log] });
  closeSync(log);
  return daemon;
}

/** What a failed test left: an engine that ends would leave its bridges to the host. */
async function removeAll(client: ContainerRuntimeClient): Promise<void> {
  const docker = client.container.dockerode;
  for (const { Id } of await docker.listContainers({ all: true })) {
    await docker.getContainer(Id).remove({ force: true, v: true });
  }
  await docker.pruneNetworks();
}

async function stopDaemon(daemon: ChildProcess, ended: Promise<void>): Promise<void> {
  daemon.kill("SIGTERM");
  const timer = setTimeout(() => daemon.kill("SIGKILL"), STOP_MS_MAX);
  if (daemon.exitCode === null && daemon.signalCode === null) await ended;
  clearTimeout(timer);
}

/** An engine that was killed leaves mounts behind. */
function removeDirectory(directory: string): void {
  const mounts = readFileSync("/proc/mounts", "utf8").split("\n");
  const ours = mounts.map((line) => line.split(" ")[1] ?? "").filter((at) => at.startsWith(`${directory}/`));
  for (const at of ours.reverse()) execFileSync("umount", ["-l", at], { stdio: "ignore" });
  rmSync(directory, { recursive: true, force: true });
}

function describe(client: ContainerRuntimeClient): { description: string } {
  const { serverVersion, operatingSystem } = client.info.containerRuntime;
  return { description: `Docker ${serverVersion} on ${operatingSystem}` };
}

function answers(socketPath: string): Promise<boolean> {
  return new Promise((resolve) => {
    const request = get({ socketPath, path: "/_ping" }, (response) => {
      response.resume();
      resolve(response.statusCode === 200);
    });
    request.on("error", () => resolve(false));
  });
}

function lastLines(file: string): string {
  return readFileSync(file, "utf8").trim().split("\n").slice(-5).join("\n");
}

export function isProgram(name: string): boolean {
  return (process.env["PATH"] ?? "").split(":").some((folder) => existsSync(path.join(folder, name)));
}
