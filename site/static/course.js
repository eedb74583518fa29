// For those who use a keyboard or a screen reader: what scrolls can be reached, and captions of the menu have a level.
document.addEventListener("DOMContentLoaded", () => {
  for (const caption of document.querySelectorAll("p.caption[role=heading]")) caption.setAttribute("aria-level", "2");
  for (const box of document.querySelectorAll("pre, .table-wrapper, .math-wrapper, .text_html"))
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
});
