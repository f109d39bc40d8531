// Every text of the page, in one place. What the server says (help of fields, reasons, refusals) comes from there.

const NAMES = { ar: "aspect ratio", lr: "learning rate", num: "number of", gpus: "GPUs", vae: "VAE", llm: "LLM", wandb: "W&B", api: "API", eps: "epsilon", dir: "folder", dtype: "data type", min: "smallest", max: "largest" };

/** A field's name as words: `wandb_api_key` → `W&B API key`. */
function fieldName(name) {
  const words = { resolutions_input: "resolutions", checkpoint_every_n_minutes: "checkpoint every", save_every: "save every", eval_every: "evaluate every", steps_per_print: "print every", clip_path: "CLIP path", video_clip_mode: "video clip mode", gradient_clipping: "gradient clipping", num_repeats: "repeats", num_gpus: "GPUs", eval_micro_batch_size_per_gpu: "evaluation batch size per GPU", eval_gradient_accumulation_steps: "evaluation micro batches", eval_before_first_step: "evaluate before the first step", enable_ar_bucket: "aspect ratio buckets", ar_buckets: "own aspect ratios", num_ar_buckets: "number of aspect ratios", enable_wandb: "use Weights & Biases" }[name]
    ?? name.split("_").map((word) => NAMES[word] ?? word).join(" ");
  return words[0].toUpperCase() + words.slice(1);
}

const plural = (number, one, many) => `${number} ${Number(number) === 1 ? one : many}`;

export const T = {
  name: "dpiped",
  unknown: "–",
  skip: "Skip to the content",
  navigation: "Views",
  fieldName,
  views: { current: "Training", form: "New training", runs: "Runs", run: (id) => `Run ${id}` },
  theme: { title: "Change between the system's, light and dark colours", auto: "Colours: system", light: "Colours: light", dark: "Colours: dark" },
  link: {
    connecting: "Connecting…",
    lost: "The connection to the server is lost. The training, if one is running, goes on by itself. Trying again…",
    unreachable: "dpiped does not answer. The training, if one is running, goes on by itself. Trying again…",
  },
  errors: {
    unreachable: "The server does not answer. Is the connection up?",
    status: (status) => `The server answered with status ${status}.`,
  },
  welcome: { title: "Nothing has run yet", text: "Set up a training; this page then shows how it goes on.", start: "New training" },
  login: { title: "Log in", text: "This server wants its token (DIFFPIPE_HTTP_TOKEN).", token: "Token", go: "Log in" },
  units: { d: "d", h: "h", min: "min", s: "s", GiB: "GiB", MiB: "MiB", percent: "%", thousand: "k", million: "M" },
  dialog: { cancel: "Cancel", close: "Close", dismiss: "Close this message" },
  sign: {
    idle: "Idle", starting: "Starting", running: "Running", stopping: "Stopping", completed: "Completed", stopped: "Stopped", failed: "Failed",
    unknown: "Ended unseen", lost: "Not connected", loss: (text) => `loss ${text}`,
  },
  states: {
    idle: "Idle", starting: "Starting", running: "Running", stopping: "Stopping", completed: "Completed", stopped: "Stopped", failed: "Failed",
    unknown: "Ended unseen", damaged: "Damaged record",
  },
  phases: {
    launching: "Launching", loading: "Loading the model", caching: "Caching latents", building: "Building the engine", training: "Training",
    evaluating: "Evaluating", checkpointing: "Writing a checkpoint", saving: "Saving the LoRA", finishing: "Finishing",
  },
  facts: {
    phase: "Phase", epoch: "Epoch", loss: "Loss", speed: "Speed", eta: "Time left", elapsed: "Elapsed", checkpoint: "Last checkpoint", gpus: "GPU memory",
    steps: "Steps", lastLoss: "Last loss", started: "Started", ended: "Ended", resumed: "Goes on from", exit: "Exit code", memory: "Peak memory",
  },
  status: {
    bar: "Steps done",
    perSecond: "samples/s",
    stepOf: (step, total, done) => `Step ${step} of ${total} (${Math.floor(done * 100)} %)`,
    stepAlone: (step) => (step === T.unknown ? "No step yet" : `Step ${step}; the total is known after the first epoch`),
    epochOf: (epoch, epochs) => `${epoch} of ${epochs}`,
    etaLater: "after the first epoch",
    noCheckpoint: "none",
    checkpoint: (name, ago) => `${name}, ${ago} ago`,
    gpu: (index, used, total, busy) => `GPU ${index}: ${used} of ${total} GiB${busy === null || busy === undefined ? "" : `, ${busy} %`}`,
    signal: (number) => `signal ${number}`,
    noReason: "No reason is known.",
    showLine: "Show it in the log",
  },
  stop: {
    button: "Stop…", harder: "Stop harder…", title: "Stop the training?", save: "Save and stop", term: "Stop without saving", kill: "Kill at once",
    checkpoint: (name) => `The last checkpoint is ${name}.`,
    noCheckpoint: "There is no checkpoint yet.",
    loses: (steps, one, time) => `Stopping without saving loses ${steps} ${one ? "step" : "steps"} (${time} of training).`,
    losesNothing: "No step would be lost.",
    explain: "“Save and stop” has a checkpoint written first, from which the training can be resumed. Each way turns to a harder one if it takes too long; in the end no process is left.",
    under: "It is stopping already; this makes it harder.",
    early: "No step is done yet, so there is nothing to save. Stopping turns to a harder way if it takes too long; in the end no process is left.",
    done: "Stopped: no process of it is left.",
  },
  save: {
    button: "Save now", asked: "Asked the trainer for a checkpoint.", done: (name) => `Saved: ${name}.`, later: "The checkpoint is asked for; it is not written yet.",
  },
  resume: {
    button: "Resume…", title: "Resume the training?", go: "Resume",
    from: (checkpoint, run) => `It goes on from ${checkpoint} of run ${run}, as a new run.`,
    settings: "With which settings", same: "As they were", completed: "As they were (not possible: it has completed all its epochs)",
    needsForm: "A completed run goes on with more epochs only: set them in the form “New training”, then resume.",
    form: "As they stand in the form “New training”", noForm: "As they stand in the form (nothing was filled in there)",
    gpus: "GPUs", gpusHelp: " empty for as many as before", key: "W&B API key",
    differences: "What would differ with the form's settings", setting: "Setting", before: "This run", after: "Form", absent: "–",
    noDifference: "The form's settings are the same.", notComparable: (why) => `The form can't be compared: ${why}`,
  },
  run: {
    toRuns: "All runs", again: "New training like this", tensorboard: "TensorBoard", config: "Settings and record", made: "Made", source: "Config",
    folder: "Run directory", output: "Training directory", command: "Command", name: "W&B run name", training: "training_config.toml", dataset: "dataset_config.toml",
    copy: "Copy", copied: "Copied.",
  },
  tensorboard: (board) => {
    if (!board || board.state === "ready" || board.state === "disabled") return "";
    const states = { starting: "TensorBoard is starting.", port_taken: "TensorBoard can't start", restarting: "TensorBoard is restarting", not_installed: "TensorBoard is not installed" };
    return board.detail ? `${(states[board.state] ?? board.state).replace(/\.$/, "")}: ${board.detail}` : states[board.state] ?? board.state;
  },
  runs: {
    title: "Runs", none: "Nothing has run yet.", more: "Show more",
    count: (number, more) => `${more ? "The newest " : ""}${plural(number, "run", "runs")}, newest first`,
    run: "Run", outcome: "Outcome", started: "Started", duration: "Duration", steps: "Steps", loss: "Last loss", config: "Config",
    resumed: (run) => `goes on from ${run}`, boardOf: (run) => `TensorBoard of run ${run}`,
  },
  chart: {
    title: "Loss", smoothing: "Smoothing", log: "Log scale", earlier: "Earlier runs", empty: "No step has been printed yet.", reading: "Reading the log…", noNumber: "None of the losses printed is a number: the training has diverged.",
    noPositive: "No loss is above 0, so there is nothing to show on a log scale.",
    slider: "Loss by step; arrow keys move along the curve",
    epoch: (epoch) => `E${epoch}`,
    range: (first, last) => `${first}–${last}`,
    tip: (steps, epoch, raw, smoothed) => [`Step ${steps}${epoch === null ? "" : `, epoch ${epoch}`}`, `Loss ${raw}`, `Smoothed ${smoothed}`],
    summary: (step, raw, smoothed, lowest, at) => `Step ${step}: loss ${raw}, smoothed ${smoothed}; lowest ${lowest} at step ${at}`,
  },
  log: {
    title: "Log", region: "Log of the run", failure: "To the failure", begin: "Beginning", end: "End", copy: "Copy", download: "Download", wrap: "Wrap",
    newLines: (number) => `${plural(number, "new line", "new lines")} ↓`, paused: "Following is paused ↓", toEnd: "To the end ↓",
    copied: (number) => `${plural(number, "line", "lines")} copied`, notCopied: "The browser did not let it be copied.",
  },
  search: {
    label: "Search in the whole log", placeholder: "Search", previous: "Previous match", next: "Next match", running: "Searching…", none: "No match",
    at: (at, all, more) => `${at === null ? "" : `${at} of `}${all}${more ? "+" : ""} ${at === null ? (all === "1" ? "match" : "matches") : ""}`.trim(),
  },
  form: {
    title: "New training",
    intro: "What is filled in is kept in this browser, except keys. Nothing starts before “Start”.",
    loading: "Loading the form…",
    busy: "A training is active. Another one can be set up here, and started once that has ended.",
    groups: ["paths", "model", "training", "data set", "optimizer", "evaluation", "monitoring"],
    group: (name) => name[0].toUpperCase() + name.slice(1),
    roots: (roots) => `It has to lie below ${roots.join(", ")}.`,
    start: "Start", check: "Check", preview: "TOML preview", load: "Load…", saveJson: "Save JSON", saveToml: "Save TOML", reset: "Reset",
    file: (kind) => `dpiped-form.${kind}`,
    fine: "Nothing is wrong with it.",
    wrong: (number) => `${plural(number, "field needs", "fields need")} a look:`,
    started: "The training is started.",
    anywayTitle: "Start without these files?", anywayText: "These model files are not there now. The training fails if they are still missing when it reads them.", anyway: "Start anyway",
    previewTitle: "The files that a start would write",
    loaded: (name) => `Loaded ${name}.`, notTaken: (names) => `Not taken, and left as they were: ${names}.`, unknown: (names) => `Not known, and left out: ${names}.`, dropped: (names) => `Not kept: ${names}.`,
    resetTitle: "Reset the form?", resetText: "All fields get their defaults again.",
    noForm: (run) => `Run ${run} was started from a config file, not from a form.`,
    replaceTitle: "Replace what is filled in?", replaceText: (run) => `The form gets the settings of run ${run}. What is filled in there now is lost.`, replace: "Replace",
    filled: (run) => `Filled in as in run ${run}.`,
  },
};
