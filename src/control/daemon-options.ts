// The command line of the daemon: QSD's options, carried out in the order in which they are given.
//
//   1. The line is read as a whole first, so that a mistake in it is told before anything is opened.
//   2. What cannot be done is told as "--option argument: reason", and the daemon does not start.

import { BlockError } from "../base/errors.ts";

/** An option that is carried out in its turn. */
export interface Step {
  readonly option: StepOption;
  readonly argument: string;
}

export type StepOption = "blockdev" | "chardev" | "export" | "monitor" | "nbd-server" | "object";

export interface DaemonOptions {
  readonly steps: readonly Step[];
  readonly pidfile: string | undefined;
  /** Directories in which images may name files; none given: anywhere. */
  readonly backingRoots: readonly string[];
  /** Rights of unix sockets, as they were written. */
  readonly socketMode: string | undefined;
  readonly socketGroup: string | undefined;
  /** No warnings of listeners that are open to others. */
  readonly insecure: boolean;
  readonly daemonize: boolean;
  /** What is asked for instead of a daemon. */
  readonly show: "help" | "version" | undefined;
  readonly verbose: boolean;
}

interface OptionKind {
  readonly takesArgument: boolean;
  readonly short?: string;
}

const OPTIONS: Readonly<Record<string, OptionKind>> = {
  "backing-root": { takesArgument: true },
  blockdev: { takesArgument: true },
  chardev: { takesArgument: true },
  daemonize: { takesArgument: false },
  export: { takesArgument: true },
  help: { takesArgument: false, short: "h" },
  insecure: { takesArgument: false },
  monitor: { takesArgument: true },
  "nbd-server": { takesArgument: true },
  object: { takesArgument: true },
  pidfile: { takesArgument: true },
  "socket-group": { takesArgument: true },
  "socket-mode": { takesArgument: true },
  trace: { takesArgument: true, short: "T" },
  verbose: { takesArgument: false, short: "v" },
  version: { takesArgument: false, short: "V" },
};

/** @throws BlockError EINVAL in getopt's words for what is not known */
export function parseDaemonOptions(args: readonly string[]): DaemonOptions {
  const steps: Step[] = [];
  const backingRoots: string[] = [];
  let pidfile: string | undefined;
  let socketMode: string | undefined;
  let socketGroup: string | undefined;
  let insecure = false;
  let daemonize = false;
  let show: DaemonOptions["show"];
  let verbose = false;
  for (const { name, argument } of splitArguments(args)) {
    if (name === "help" || name === "version") show ??= name;
    else if (name === "pidfile") pidfile = argument;
    else if (name === "backing-root") backingRoots.push(argument!);
    else if (name === "socket-mode") socketMode = argument;
    else if (name === "socket-group") socketGroup = argument;
    else if (name === "insecure") insecure = true;
    else if (name === "daemonize") daemonize = true;
    else if (name === "verbose") verbose = true;
    else if (name !== "trace") steps.push({ option: name as StepOption, argument: argument! });
  }
  return { steps, pidfile, backingRoots, socketMode, socketGroup, insecure, daemonize, show, verbose };
}

interface Given {
  readonly name: string;
  readonly argument: string | undefined;
}

function splitArguments(args: readonly string[]): Given[] {
  const given: Given[] = [];
  const waiting = [...args];
  for (let word = waiting.shift(); word !== undefined; word = waiting.shift()) {
    if (word === "--") {
      if (waiting.length > 0) throw unexpected(waiting[0]!);
    } else if (word.startsWith("--")) given.push(longOption(word, waiting));
    else if (word.startsWith("-") && word !== "-") given.push(...shortOptions(word, waiting));
    else throw unexpected(word);
  }
  return given;
}

function unexpected(word: string): BlockError {
  return new BlockError("EINVAL", `${word}: Unexpected argument`);
}

function longOption(word: string, waiting: string[]): Given {
  const equals = word.indexOf("=");
  const written = equals < 0 ? word : word.slice(0, equals);
  const name = completeName(written);
  const attached = equals < 0 ? undefined : word.slice(equals + 1);
  if (!OPTIONS[name]!.takesArgument) {
    if (attached === undefined) return { name, argument: undefined };
    throw new BlockError("EINVAL", `option '--${name}' doesn't allow an argument`);
  }
  const argument = attached ?? waiting.shift();
  if (argument === undefined) throw new BlockError("EINVAL", `option '--${name}' requires an argument`);
  return { name, argument };
}

/** The option that a beginning stands for, as getopt takes it. */
function completeName(written: string): string {
  const wanted = written.slice(2);
  const names = Object.keys(OPTIONS);
  if (names.includes(wanted)) return wanted;
  const matching = names.filter((name) => wanted !== "" && name.startsWith(wanted));
  if (matching.length === 1) return matching[0]!;
  if (matching.length === 0) throw new BlockError("EINVAL", `unrecognized option '${written}'`);
  const choices = matching.map((name) => `'--${name}'`).join(" ");
  throw new BlockError("EINVAL", `option '${written}' is ambiguous; possibilities: ${choices}`);
}

function shortOptions(word: string, waiting: string[]): Given[] {
  const given: Given[] = [];
  for (let at = 1; at < word.length; at++) {
    const letter = word[at]!;
    const entry = Object.entries(OPTIONS).find(([, { short }]) => short === letter);
    if (entry === undefined) throw new BlockError("EINVAL", `invalid option -- '${letter}'`);
    const [name, { takesArgument }] = entry;
    if (!takesArgument) {
      given.push({ name, argument: undefined });
      continue;
    }
    const argument = at + 1 < word.length ? word.slice(at + 1) : waiting.shift();
    if (argument === undefined) throw new BlockError("EINVAL", `option requires an argument -- '${letter}'`);
    given.push({ name, argument });
    break;
  }
  return given;
}

export function helpText(program: string): string {
  return `Usage: ${program} [options]
Strata storage daemon: takes the command line and the QMP of qemu-storage-daemon

  -h, --help             display this help and exit
  -T, --trace <pattern>  accepted, without effect
  -V, --version          output version information and exit
  -v, --verbose          log what happens to standard error

  --blockdev [driver=]<driver>[,node-name=<N>][,discard=ignore|unmap]
             [,cache.direct=on|off][,cache.no-flush=on|off]
             [,read-only=on|off][,auto-read-only=on|off]
             [,force-share=on|off][,detect-zeroes=on|off|unmap]
             [,driver specific parameters...]
                         configure a block node; drivers: file, raw, qcow2, blkdebug

  --backing-root <directory>
                         images may name files below this directory only, and
                         below the folder of the image that an option names;
                         may be given several times; without it, anywhere

  --chardev [backend=]<socket|stdio|file|null>,id=<id>[,parameters...]
                         configure a character device
                         socket: path=<path> or host=<host>,port=<port>,
                         server=on|off, wait=on|off, reconnect=<seconds>

  --daemonize            run in the background; the command returns once
                         the daemon is ready

  --export [type=]nbd,id=<id>,node-name=<node-name>[,name=<export-name>]
           [,writable=on|off][,description=<text>][,allocation-depth=on|off]
                         serve a node over NBD (requires --nbd-server)

  --monitor [chardev=]<name>[,mode=control|readline][,pretty=on|off]
                         configure a monitor: QMP, or (readline) one for people

  --nbd-server addr.type=inet,addr.host=<host>,addr.port=<port>
               [,tls-creds=<id>][,tls-authz=<id>][,max-connections=<n>]
               [,handshake-max-seconds=<s>]
  --nbd-server addr.type=unix,addr.path=<path>
               [,tls-creds=<id>][,tls-authz=<id>][,max-connections=<n>]
               [,handshake-max-seconds=<s>]
                         start an NBD server; with tls-creds over TLS only

  --insecure             no warning of a monitor, or an NBD server without
                         TLS, that other machines can reach
  --socket-mode <mode>   rights of unix sockets: 600 (the default), 660 ...
  --socket-group <group> group of unix sockets; alone it means mode 660

  --object help          list object types
  --object <type>,id=<id>[,<property>=<value>...]
                         create an object: tls-creds-x509, tls-creds-psk,
                         secret, authz-simple, authz-list, authz-listfile;
                         others have no effect here

  --pidfile <path>       write the process id to a file when ready

Options are carried out in the order in which they are given. Example:
  ${program} \\
    --blockdev qcow2,node-name=disk,file.driver=file,file.filename=disk.qcow2 \\
    --nbd-server addr.type=unix,addr.path=/tmp/disk.sock \\
    --export nbd,id=virtio0,node-name=disk,name=disk,writable=on \\
    --chardev socket,id=qmp,path=/tmp/qmp.sock,server=on,wait=off --monitor qmp
`;
}
