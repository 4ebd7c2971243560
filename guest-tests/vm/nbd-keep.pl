#!/usr/bin/perl -w
# Gives the kernel's NBD driver connections over netlink, at first and again when they are dead. Requests wait
# in the kernel meanwhile. No nbd-client up to 3.26.1 does this, not with -persist either.
#
#   nbd-keep connect|reconnect HOST PORT EXPORT INDEX CONNECTIONS TIMEOUT DEAD-TIMEOUT
#
# Plain Perl without any module, not even strict: a guest has no library of them. Numbers are from Linux: netlink.h,
# genetlink.h, nbd-netlink.h; the handshake is that of NBD_OPT_EXPORT_NAME.

my ($verb, $host, $port, $export, $index, $connections, $timeout, $dead) = @ARGV;

sub take {
  my ($socket, $bytes) = @_;
  my $got = "";
  while (length $got < $bytes) {
    my $count = sysread $socket, $got, $bytes - length $got, length $got;
    die "the server hung up\n" unless $count;
  }
  return $got;
}

# One connection after its handshake, with the disk's size and flags.
sub dial {
  socket my $socket, 2, 1, 6 or die "socket: $!\n";
  connect $socket, pack("S n C4 x8", 2, $port, split /\./, $host) or die "connect: $!\n";
  setsockopt $socket, 6, 1, pack("i", 1);
  my ($magic, $option, $flags) = unpack "a8 a8 n", take($socket, 18);
  die "this is no NBD server\n" unless $magic eq "NBDMAGIC" && $option eq "IHAVEOPT" && ($flags & 3) == 3;
  syswrite $socket, pack("N a8 N N/a*", 3, "IHAVEOPT", 1, $export);
  my ($size, $features) = unpack "Q> n", take($socket, 10);
  return ($socket, $size, $features);
}

sub attribute {
  my ($type, $payload) = @_;
  my $length = 4 + length $payload;
  return pack("S S", $length, $type) . $payload . "\0" x (-$length & 3);
}

socket my $netlink, 16, 3, 16 or die "netlink: $!\n";
bind $netlink, pack("S S L L", 16, 0, 0, 0) or die "bind: $!\n";
my $sequence = 0;

# Asks and gives the replies before the acknowledgement. 5 is REQUEST | ACK.
sub ask {
  my ($family, $command, $attributes) = @_;
  my $body = pack("C C S", $command, 1, 0) . $attributes;
  syswrite $netlink, pack("L S S L L", 16 + length $body, $family, 5, ++$sequence, 0) . $body;
  my @replies;
  while (1) {
    sysread $netlink, my $answer, 65536 or die "netlink: $!\n";
    while (length $answer >= 16) {
      my ($length, $type) = unpack "L S", $answer;
      my $message = substr $answer, 0, $length;
      $answer = substr $answer, ($length + 3) & ~3;
      if ($type == 2) {
        my $error = -unpack "l", substr $message, 16, 4;
        return @replies unless $error;
        $! = $error;
        die "$verb: $!\n";
      }
      push @replies, substr $message, 20;
    }
  }
}

# Controller 16, GETFAMILY 3, FAMILY_NAME 2; FAMILY_ID 1 is in the reply.
my $family;
for my $reply (ask(16, 3, attribute(2, "nbd\0"))) {
  while (length $reply >= 4) {
    my ($length, $type) = unpack "S S", $reply;
    $family = unpack "S", substr $reply, 4, 2 if $type == 1;
    $reply = substr $reply, ($length + 3) & ~3;
  }
}

my (@sockets, $size, $features);
my $items = "";
for (1 .. $connections) {
  (my $socket, $size, $features) = dial();
  push @sockets, $socket;
  $items .= attribute(1 | 0x8000, attribute(1, pack "L", fileno $socket));
}
my $attributes = attribute(1, pack "L", $index);
$attributes .= attribute(2, pack "Q", $size) . attribute(3, pack "Q", 512) if $verb eq "connect";
$attributes .= attribute(4, pack "Q", $timeout) . attribute(5, pack "Q", $features);
$attributes .= attribute(8, pack "Q", $dead) . attribute(7 | 0x8000, $items);
ask($family, $verb eq "connect" ? 1 : 3, $attributes);
