// What scrolls sideways can be scrolled with the keyboard, too, and buttons of code have distinct names.
function focusable() {
  document.querySelectorAll(".md-code__nav").forEach((nav, n) => {
    nav.ariaLabel = `Code block ${n + 1}`;
  });
  document.querySelectorAll(".md-typeset__scrollwrap, pre > code").forEach((part) => {
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
  });
}
new MutationObserver(focusable).observe(document.body, { childList: true, subtree: true });
window.addEventListener("resize", focusable);
focusable();
