# From here on launch/tpu_vm.sh, the same for all trainings.
set -uo pipefail
PAUSE=${POLL_SECS:-30}
BLIPS=10      # calls of gcloud in a row that may fail
LONG_SECS=600 # a connection that held as long is no failure
MISTAKES='INVALID_ARGUMENT|PERMISSION_DENIED|UNAUTHENTICATED|unrecognized arguments|Invalid choice|Invalid value'
GIVE_BACK="gcloud alpha compute tpus queued-resources delete $NAME --zone=$ZONE --force"
SAID=$(mktemp) || exit 1

state=UNKNOWN machines=maybe attempt="" prepared=no
failures=0 lost=0 blips=0 watching=""

at_end() {
  rm -f "$SAID"
  [ -z "$watching" ] || kill -- "-$watching" 2>/dev/null
  [ "$machines" = no ] || {
    echo "the machines stay, and cost. What runs on them goes on; this script, started again, finds it."
    echo "To give them back: $GIVE_BACK"
  } >&2
}
trap at_end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

queued() { gcloud alpha compute tpus queued-resources "$1" "$NAME" --zone="$ZONE" "${@:2}"; }
# gcloud connects to 64 hosts at a time at most, so starting returns at once, and watching is another command.
on_hosts() { queued ssh --node=all --worker=all --command="$1"; }
# In the background, as a group of processes (-m): a shell hears signals while it waits, not while a command runs.
watch_hosts() {
  set -m; on_hosts "$WATCH $attempt" </dev/null & watching=$!; set +m
  wait "$watching"; watching=""
}
ask() { queued ssh --node=0 --worker=0 --command="$ASK" | grep -E '^(running|ended|nothing)' | tail -n 1; }

end() { echo "error: $1" >&2; exit "${2:-1}"; }
failed() {
  failures=$((failures + 1)); echo "$1; attempt $failures of $ATTEMPTS" >&2
  [ "$failures" -lt "$ATTEMPTS" ] || end "gave up after $failures attempts" "${2:-1}"
}
unreachable() {
  lost=$((lost + 1)); echo "$1; looking again ($lost of $ATTEMPTS)" >&2
  [ "$lost" -lt "$ATTEMPTS" ] || end "no connection to the machines, $lost times in a row"
}

# Sets `state`: what the cloud says, or ABSENT. Only NOT_FOUND means that there is nothing.
look() {
  if state=$(queued describe --format='value(state.state)' 2>"$SAID"); then machines=maybe blips=0; return; fi
  if grep -q NOT_FOUND "$SAID"; then state=ABSENT machines=no blips=0; return; fi
  cat "$SAID" >&2; state=UNKNOWN
  if grep -qE "$MISTAKES" "$SAID"; then end "gcloud refuses to describe $NAME"; fi
  blips=$((blips + 1)); echo "gcloud does not say what there is; asking again ($blips of $BLIPS)" >&2
  [ "$blips" -lt "$BLIPS" ] || end "gcloud did not say what there is, $blips times in a row"
}

create() {
  machines=maybe attempt="" prepared=no
  if queued create "${CREATE[@]}" 2>"$SAID"; then cat "$SAID" >&2; return; fi
  cat "$SAID" >&2
  if grep -q ALREADY_EXISTS "$SAID"; then return; fi
  if grep -qE "$MISTAKES" "$SAID"; then machines=no; end "gcloud refuses to create $NAME"; fi
  failed "$NAME could not be created"
}

give_back() {
  local try
  for try in 1 2 3 4 5; do
    if queued delete --force --quiet 2>"$SAID" || grep -q NOT_FOUND "$SAID"; then machines=no; return 0; fi
    cat "$SAID" >&2; echo "giving back failed, $try of 5" >&2; sleep "$PAUSE"
  done
  return 1
}

# Returns 1 where the connection failed.
prepare() {
  local code
  [ "$prepared" = no ] || return 0
  on_hosts "$SETUP"; code=$?
  case "$code" in
    0) prepared=yes ;;
    99) end "--setup failed (above), nothing was started. Mend it and run the new script: it goes on with these machines" ;;
    *) return 1 ;;
  esac
}

train() {
  local found since code=lost
  found=$(ask)
  case "$found" in
    "") unreachable "no connection"; return ;;
    "running $COMMAND_ID"*)
      # The same command, started before: the connection was lost, or this script was stopped.
      [ "$attempt" = "${found#running }" ] || echo "it runs already; watching it" >&2
      attempt=${found#running } ;;
  esac
  if [ -z "$attempt" ]; then
    prepare || { unreachable "no connection to prepare the hosts"; return; }
    attempt=$COMMAND_ID.$(date +%s).$RANDOM
  fi
  since=$SECONDS
  if on_hosts "$START $attempt"; then watch_hosts; fi
  [ $((SECONDS - since)) -lt "$LONG_SECS" ] || lost=0
  found=$(ask)
  case "$found" in "ended $attempt "*) code=${found##* } ;; esac
  case "$code" in
    lost) unreachable "the machines or the connection are gone"; return ;;
    0)
      give_back || end "the training is done, but the machines could not be given back"
      exit 0 ;;
    2 | 3 | 126 | 127) end "exit code $code, a mistake that no repetition mends" "$code" ;;
    4) echo "saved and stopped; continuing" >&2 ;;
    *) failed "exit code $code" "$code" ;;
  esac
  lost=0 attempt=""
}

while true; do
  look
  case "$state" in
    ABSENT) create ;;
    ACTIVE) train ;;
    SUSPENDING | SUSPENDED | FAILED)
      # Taken away: a queued resource never comes back to life. One that never lived may never do.
      [ "$state" != FAILED ] || [ -n "$attempt" ] || failed "the cloud could not make $NAME"
      give_back || failed "$NAME could not be given back"
      attempt="" prepared=no lost=0 ;;
  esac
  sleep "$PAUSE"
done
