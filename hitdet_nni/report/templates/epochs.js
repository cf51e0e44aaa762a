"use strict";
(() => {
  const data = JSON.parse(document.getElementById("alpha-values").textContent);
  const slider = document.getElementById("epoch");
  const shown = document.getElementById("epoch-shown");
  const tables = [...document.querySelectorAll("table.heat")].map((table) => ({
    component: table.dataset.component,
    peak: Number(table.dataset.peak),
    columns: table.querySelectorAll("thead th").length - 1,
    layers: [...table.querySelectorAll("thead th")].slice(1).map((head) => head.textContent),
    operators: [...table.querySelectorAll("tbody th")].map((head) => head.textContent),
    cells: [...table.querySelectorAll("tbody td")],
  }));

  function show(index) {
    const epoch = data.epochs[index];
    shown.textContent = epoch;
    slider.setAttribute("aria-valuetext", `after epoch ${epoch}`);
    for (const table of tables) {
      const values = data.values[index][table.component];
      const best = table.layers.map((_, column) =>
        Math.max(...values.filter((value, place) => value && place % table.columns === column).map((value) => value[0])));
      table.cells.forEach((cell, place) => {
        const column = place % table.columns;
        const name = `${table.component}/${table.layers[column]}, ${table.operators[Math.floor(place / table.columns)]}`;
        const value = values[place];
        const share = value ? value[0] / table.peak : 0;
        cell.textContent = value ? value[0].toFixed(2).replace(/^0/, "") : "";
        cell.title = value
          ? `${name}: probability ${value[0].toFixed(4)}, alpha ${value[1].toFixed(4)}` : `${name}: no value`;
        cell.style.setProperty("--p", share.toFixed(3));
        cell.classList.toggle("dark", share > 0.6);
        cell.classList.toggle("best", Boolean(value) && value[0] === best[column]);
        cell.classList.toggle("none", !value);
      });
    }
  }

  slider.addEventListener("input", () => show(Number(slider.value)));
  slider.closest(".slider").hidden = false;
  show(Number(slider.value));
})();
