# `make` alone lists the commands. Each makes the environment that it needs, so any of them works on a fresh clone.

VENV := .venv
PYTHON := $(VENV)/bin/python

# The first Python on the PATH that this course runs on and that can make environments.
SYSTEM_PYTHON := $(shell for name in python3 python3.13 python3.12 python3.11 python; do \
	$$name -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& { echo $$name; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help environment run test lint lab app serve site address clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# What a command needs: requirements.txt and the files named. CPU=1 takes PyTorch's build without NVIDIA's libraries.
define need
@test -n "$(SYSTEM_PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 with the venv module was found. Install one" \
	"(on Debian or Ubuntu: apt-get install python3 python3-venv) and repeat the command."; exit 1; }
@$(SYSTEM_PYTHON) scripts/make_environment.py $(if $(CPU),--cpu) $(VENV) requirements.txt $(1)
endef
EVERYTHING := requirements-lab.txt requirements-page.txt requirements-dev.txt

environment:  ## make .venv, or mend it; the other commands do so themselves; with CPU=1 without NVIDIA's libraries
	$(call need,requirements-lab.txt)

run:  ## run every notebook, caption the sample photos, print the results
	$(call need,requirements-lab.txt)
	@$(PYTHON) scripts/run_all.py

test:  ## lint, unit tests, every cell of every notebook, browser test
	$(call need,$(EVERYTHING))
	@sh scripts/get_chromium.sh
	@$(PYTHON) -m ruff check .
	@export OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1}; status=0; \
	for part in $(or $(PART),tests notebooks); do \
		$(PYTHON) -m pytest $$part -n 2 --dist loadfile $(PYTEST_OPTIONS) || status=1; \
	done; \
	exit $$status

lint:  ## check style only
	$(call need,$(EVERYTHING))
	@$(PYTHON) -m ruff check .

lab:  ## open JupyterLab on the first notebook
	$(call need,requirements-lab.txt)
	@$(PYTHON) -m jupyterlab $(firstword $(sort $(wildcard notebooks/*.ipynb)))

app:  ## open the web page; a captioner of your own: make app CHECKPOINT=folder
	$(call need,requirements-page.txt)
	@$(PYTHON) -m streamlit run app.py $(if $(CHECKPOINT),-- --checkpoint "$(CHECKPOINT)")

serve:  ## serve captions over HTTP on 127.0.0.1:8000; CHECKPOINT=folder as above
	$(call need,requirements-page.txt)
	@$(PYTHON) serve.py $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)") $(SERVE_OPTIONS)

site: build/site-env/.ready  ## make the course's web pages in build/site, from stored outputs
	@build/site-env/bin/sphinx-build -q -W --keep-going -c site . build/site
	@echo "Read them by: $(SYSTEM_PYTHON) -m http.server --directory build/site"

build/site-env/.ready: requirements-site.txt
	@$(SYSTEM_PYTHON) -m venv --clear build/site-env
	@build/site-env/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-site.txt
	@mkdir -p build/mermaid  # draws the diagrams; with npm it becomes a part of the pages, else they load it from elsewhere
	@! command -v npm >/dev/null || { cd build/mermaid && npm pack --silent mermaid@11 | xargs tar xzf; }
	@touch $@

address:  ## write where the course is hosted into notebooks and documents: ADDRESS=owner/name, or git's origin
	@$(SYSTEM_PYTHON) scripts/bootstrap_cell.py "$(or $(ADDRESS),$(shell git remote get-url origin))"

clean:  ## remove the environment and everything that was built
	rm -rf $(VENV) build
