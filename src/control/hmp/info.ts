// What `info` shows: QEMU's texts, so that eyes and scripts that know them find their way.

import { chainOf } from "../../block/chain.ts";
import type { BlockNode } from "../../block/node.ts";
import { images } from "./names.ts";
import type { HmpTarget } from "./target.ts";

/** The devices, or `image` alone, which need not be served. */
export function infoBlock(target: HmpTarget, image?: BlockNode): string {
  const all = target.devices();
  const devices = image === undefined ? all : all.filter(({ node }) => node === image);
  if (devices.length === 0 && image !== undefined) return namedNode(image);
  if (devices.length === 0) return "No block devices: nothing is exported; see 'info named-block-nodes'\n";
  return devices
    .map(({ name, node, readOnly }) => {
      const head = `${name} (${node.name}): ${node.filename} (${node.driverName}${readOnly ? ", read-only" : ""})\n`;
      return head + nodeLines(node);
    })
    .join("\n");
}

export function infoNamedBlockNodes(target: HmpTarget): string {
  const nodes = [...target.nodes()];
  const shown = [...images(nodes), ...nodes.filter((node) => !images(nodes).includes(node))];
  if (shown.length === 0) return "No block nodes\n";
  return shown.map(namedNode).join("\n");
}

function namedNode(node: BlockNode): string {
  const mode = node.readOnly ? ", read-only" : "";
  return `${node.name}: ${node.filename} (${node.driverName}${mode})\n` + nodeLines(node);
}

function nodeLines(node: BlockNode): string {
  const lines = ["    Cache mode:       writeback", `    Virtual size:     ${node.size} bytes`];
  if (node.backing !== undefined) {
    const depth = chainOf(node).length - 1;
    lines.push(`    Backing file:     ${node.backing.filename} (chain depth: ${depth})`);
  }
  return lines.join("\n") + "\n";
}

interface BlockJobInfo {
  readonly device: string;
  readonly type: string;
  readonly len: number;
  readonly offset: number;
  readonly speed: number;
  readonly status: string;
  readonly "io-status": string;
  readonly error?: string;
}

export async function infoBlockJobs(target: HmpTarget): Promise<string> {
  const jobs = (await target.execute("query-block-jobs", {})) as BlockJobInfo[];
  if (jobs.length === 0) return "No active jobs\n";
  return jobs.map(jobLine).join("");
}

function jobLine(job: BlockJobInfo): string {
  const head =
    job.type === "stream" ? `Streaming device ${job.device}` : `Type ${job.type}, device ${job.device}`;
  const state = job.status === "running" ? "" : `, ${job.status}`;
  const trouble = job["io-status"] === "ok" ? "" : `, io-status ${job["io-status"]}`;
  const error = job.error === undefined ? "" : `, error: ${job.error}`;
  const progress = `Completed ${job.offset} of ${job.len} bytes, speed limit ${job.speed} bytes/s`;
  return `${head}: ${progress}${state}${trouble}${error}\n`;
}

interface JobInfo {
  readonly id: string;
  readonly type: string;
  readonly status: string;
  readonly "current-progress": number;
  readonly "total-progress": number;
}

export async function infoJobs(target: HmpTarget): Promise<string> {
  const jobs = (await target.execute("query-jobs", {})) as JobInfo[];
  if (jobs.length === 0) return "No jobs\n";
  return jobs
    .map(
      (job) =>
        `${job.id}: ${job.type}, ${job.status}, ${job["current-progress"]} of ${job["total-progress"]}\n`,
    )
    .join("");
}

/** Each chain that is served, bottom to top as people draw it. */
export function infoChain(target: HmpTarget): string {
  const devices = target.devices();
  if (devices.length === 0) return "No chains: nothing is exported\n";
  return devices
    .map(({ name, node }) => {
      const nodes = chainOf(node).reverse();
      return `${name}: ${nodes.map((each) => `[${each.name}]`).join(" <- ")}\n`;
    })
    .join("");
}

export async function infoVersion(target: HmpTarget): Promise<string> {
  const version = (await target.execute("query-version", {})) as {
    qemu: { major: number; minor: number; micro: number };
    package: string;
  };
  const { major, minor, micro } = version.qemu;
  return `${major}.${minor}.${micro}${version.package === "" ? "" : ` (${version.package})`}\n`;
}

/** What each image has served, and what its driver counts: locks, caches, flushes. */
export function infoCounters(target: HmpTarget): string {
  const shown = images([...target.nodes()]);
  if (shown.length === 0) return "No block nodes\n";
  return shown
    .map((node) => `${node.name}:\n` + counterLines({ ...node.counters, ...node.driverCounters() }))
    .join("");
}

function counterLines(counters: Readonly<Record<string, number>>): string {
  const width = Math.max(...Object.keys(counters).map((name) => name.length));
  return Object.entries(counters)
    .map(([name, value]) => `    ${`${name}:`.padEnd(width + 1)} ${Math.round(value * 1000) / 1000}\n`)
    .join("");
}
