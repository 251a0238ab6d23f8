// The viewer of a report: source, prediction, truth, error and expected error of one pair, side by side and scrolled
// together.
//
// `report` (JSON in the page) holds for each subject its volumes as sprites: axial slices, left to right and top to
// bottom, `columns` to a row, first column of a tile the patient's left, first row the back. NiiVue draws them.
"use strict";

const COLORMAPS = { error: "inferno", expected: "mako" };

async function startViewer(report, root) {
  const select = (name) => root.querySelector(`select[name=${name}]`);
  const status = root.querySelector(".status");
  const views = {};
  for (const panel of report.panels) {
    const view = new niivue.Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [0.2, 0.8, 0.3, 0.6], crosshairWidth: 1,
      isRadiologicalConvention: true, sagittalNoseLeft: true, isCornerOrientationText: false,
      multiplanarShowRender: 0, multiplanarLayout: 3, fontSizeScaling: 0.6, fontMinPx: 11, logLevel: "error",
      dragAndDropEnabled: false, loadingText: "",
    });
    await view.attachToCanvas(root.querySelector(`canvas.${panel}`));
    view.setSliceType(view.sliceTypeMultiplanar);
    views[panel] = view;
  }
  for (const panel of report.panels) {
    views[panel].broadcastTo(report.panels.filter((other) => other !== panel).map((other) => views[other]), { "2d": true });
  }

  const name = (key) => report.names[key] ?? key;
  const subject = () => report.subjects[select("subject").value];
  const pairs = () => subject().pairs;

  function fill(name, values, labels) {
    const element = select(name), before = element.value;
    element.replaceChildren(...values.map((value) => new Option(labels(value), value)));
    if (values.includes(before)) element.value = before;
  }

  // each list holds only what exists for the choices before it
  function offer() {
    const unique = (items) => [...new Set(items)];
    fill("source", unique(pairs().map((pair) => pair.source)), name);
    const ofSource = pairs().filter((pair) => pair.source === select("source").value);
    fill("target", unique(ofSource.map((pair) => pair.target)), name);
    const ofTarget = ofSource.filter((pair) => pair.target === select("target").value);
    fill("method", unique(ofTarget.map((pair) => pair.method)), (method) => method);
    return ofTarget.find((pair) => pair.method === select("method").value);
  }

  let latest = 0;
  async function show() {
    const run = ++latest;
    const pair = offer();
    root.dataset.ready = "false";
    const { shape, spacing, volumes, position } = subject();
    const load = (key) => (key in volumes ? decodeSprite(volumes[key], shape, report.columns) : null);
    const keys = [pair.source, pair.key, pair.target, pair.expected];
    const [source, prediction, truth, expected] = await Promise.all(keys.map(load));
    if (run !== latest) return;
    const error = truth && prediction.map((value, i) => Math.min(255, Math.abs(value - truth[i]) / report.ranges.error));
    const voxels = { source, prediction, truth, error, expected };
    for (const panel of report.panels) {
      const view = views[panel];
      while (view.volumes.length) view.removeVolume(view.volumes[0]);
      view.canvas.parentElement.classList.toggle("absent", !voxels[panel]);
      if (!voxels[panel]) continue;
      const scale = (report.ranges[panel] ?? 1) / 255;
      const image = await niivue.NVImage.loadFromUrl({
        url: `${panel}.nii`, name: `${panel}.nii`, buffer: niftiOf(voxels[panel], shape, spacing, scale),
        colormap: COLORMAPS[panel] ?? "gray", cal_min: 0, cal_max: 255 * scale, trustCalMinMax: false,
      });
      image.cal_min = 0;
      image.cal_max = 255 * scale;
      view.addVolume(image);
      view.scene.crosshairPos = view.vox2frac(position);
      view.drawScene();
    }
    const titles = { source: `Source ${name(pair.source)}`, truth: `True ${name(pair.target)}`, error: "|Error|" };
    titles.expected = "Error that the model expects";
    titles.prediction = `Predicted ${name(pair.target)} (synthetic), ${pair.method}`;
    for (const panel of report.panels) root.querySelector(`figure.${panel} figcaption span`).textContent = titles[panel];
    root.querySelector(".scores").textContent = pair.scores;
    root.dataset.ready = "true";
  }

  select("subject").replaceChildren(...report.subjects.map((item, i) => new Option(item.subject, i)));
  for (const element of root.querySelectorAll("select")) element.addEventListener("change", () => show().catch(fail));
  function fail(error) {
    status.textContent = `The viewer failed: ${error.message}`;
    root.dataset.ready = "failed";
  }
  await show();
}

// Voxels, x (right) fastest, of a sprite whose tiles are axial slices
async function decodeSprite(sprite, [nx, ny, nz], columns) {
  const image = new Image();
  image.src = sprite;
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, image.width, image.height).data;
  const voxels = new Uint8Array(nx * ny * nz);
  for (let z = 0, i = 0; z < nz; z++) {
    const left = (z % columns) * nx, top = Math.floor(z / columns) * ny;
    for (let y = 0; y < ny; y++) {
      for (let x = 0; x < nx; x++, i++) voxels[i] = pixels[4 * ((top + y) * image.width + left + x)];
    }
  }
  return voxels;
}

// A NIfTI-1 file in memory: uint8 voxels in RAS order, centred
function niftiOf(voxels, shape, spacing, slope) {
  const buffer = new ArrayBuffer(352 + voxels.length);
  const header = new DataView(buffer);
  header.setInt32(0, 348, true);
  [3, ...shape, 1, 1, 1, 1].forEach((value, i) => header.setInt16(40 + 2 * i, value, true));
  header.setInt16(70, 2, true);
  header.setInt16(72, 8, true);
  [1, ...spacing].forEach((value, i) => header.setFloat32(76 + 4 * i, value, true));
  header.setFloat32(108, 352, true);
  header.setFloat32(112, slope, true);
  header.setUint8(123, 2);
  header.setInt16(254, 1, true);
  for (let row = 0; row < 3; row++) {
    header.setFloat32(280 + 16 * row + 4 * row, spacing[row], true);
    header.setFloat32(280 + 16 * row + 12, (-spacing[row] * (shape[row] - 1)) / 2, true);
  }
  [0x6e, 0x2b, 0x31, 0].forEach((value, i) => header.setUint8(344 + i, value));
  new Uint8Array(buffer, 352).set(voxels);
  return buffer;
}

(async () => {
  const root = document.getElementById("viewer");
  if (!root) return;
  try {
    if (!document.createElement("canvas").getContext("webgl2")) throw new Error("this browser has no WebGL 2.");
    await startViewer(JSON.parse(document.getElementById("report-data").textContent), root);
  } catch (error) {
    root.dataset.ready = "failed";
    root.querySelector(".status").textContent = `The viewer cannot run: ${error.message} The figures above do not need it.`;
  }
})();
