# `make book` builds the book, `make test` checks everything; both set up what they need.

PYTHON ?= python3
COLAB_PYTHON ?= python3.13
BIN    := .venv/bin
READY  := .venv/.ready
FRONT  := _build/html/index.html
BUILT  := _build/.built
SOURCES := _config.yml _toc.yml \
           $(shell find book notebooks assignments/source mlguide -type f -not -path '*/.*' -not -name '*.pyc')

# A notebook stays with one worker, whose kernel runs its cells in order.
NBVAL := --nbval --nbval-current-env --nbval-cell-timeout=290 -n 2 --dist loadfile

GRADED := tests/test_assignments.py tests/test_grading.py
FLEET  := tests/test_fleet.py # processes that must not wait for others
SLOW   := $(GRADED) $(FLEET) tests/test_site.py

.DEFAULT_GOAL := help
.PHONY: help book serve test test-lowest test-newest test-colab release refresh assignments grade \
        bench bench-flower fleet coverage mutate screenshots clean

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' Makefile | expand -t 22

$(READY): pyproject.toml constraints.txt
	@echo "==> setting up .venv"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e '.[book,test,teach]'
	@touch $@

# Always the whole book: a page that quotes a notebook's results must follow that notebook.
$(BUILT): $(READY) $(SOURCES)
	@echo "==> building the book"
	rm -rf _build/html _build/.doctrees _build/jupyter_execute
	$(BIN)/jupyter-book build . -W --keep-going -n
	@touch $@

book: $(BUILT) ## build the HTML into _build/html
	@echo "The book is at $(CURDIR)/$(FRONT)"
	@echo "Open that file in a browser, or run 'make serve'."

serve: ## show the built book on this machine only
	@test -f $(FRONT) || { echo "There is no book yet: run 'make book' first."; exit 1; }
	$(PYTHON) -m http.server --bind 127.0.0.1 --directory _build/html 8000

# One thread each: small models then run faster, and two notebooks do not get in each other's way.
test: export OMP_NUM_THREADS := 1
test: $(READY) ## run every check, the cheap ones first
	@echo "==> 1/8 lint";               $(BIN)/ruff check .
	@echo "==> 2/8 format";             $(BIN)/ruff format --check .
	@echo "==> 3/8 types";              $(BIN)/pyright
	@echo "==> 4/8 package, project";   $(BIN)/pytest -n 2 --dist loadfile tests $(SLOW:%=--ignore %) && $(BIN)/pytest $(FLEET)
	@echo "==> 5/8 assignments";        $(BIN)/pytest -n 2 $(GRADED)
	@echo "==> 6/8 notebooks";          $(BIN)/pytest $(NBVAL) notebooks assignments/source
	@echo "==> 7/8 book";               $(MAKE) --no-print-directory book
	@echo "==> 8/8 site";               $(BIN)/pytest -n 2 tests/test_site.py
	@echo "==> all passed"

# Environments of their own, beside the one that the book is made with.
.venv-lowest/.ready: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install -c constraints-lowest.txt -e '.[test]'
	@touch $@

test-lowest: export OMP_NUM_THREADS := 1
test-lowest: .venv-lowest/.ready ## run the package's tests with the lowest versions it supports
	@# torch 2.4 stacks the networks of the keyboard rightly, but says that it does so slowly
	.venv-lowest/bin/pytest -W 'ignore:There is a performance drop' @tests/package.txt

# Whatever the index serves on the day: never kept.
test-newest: export OMP_NUM_THREADS := 1
test-newest: ## build the book and run the package's tests with the newest versions
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install -e '.[book,test]'
	.venv-newest/bin/pytest @tests/package.txt
	.venv-newest/bin/jupyter-book build . -W --keep-going -n --path-output .venv-newest

.venv-colab/.ready: scripts/colab-versions.txt
	$(COLAB_PYTHON) -m venv --clear .venv-colab
	.venv-colab/bin/python -m pip install -r $<
	@touch $@

test-colab: $(READY) .venv-colab/.ready ## install into what Colab ships, run a notebook there (or NB=path ...)
	$(BIN)/python scripts/colab.py $(NB)

release: $(BUILT) ## check, then build the wheel, the source and the book into _build/release
	$(BIN)/python scripts/release.py

refresh: export OMP_NUM_THREADS := 1
refresh: $(READY) ## run the notebooks again in place (all, or NB=path)
	$(BIN)/python scripts/notebooks.py refresh $(NB)

assignments: $(READY) ## make the student versions in assignments/release
	$(BIN)/python scripts/assignments.py

grade: $(READY) ## grade SUBMISSIONS=folder, which holds a folder for each student
	$(if $(SUBMISSIONS),,$(error say which: make grade SUBMISSIONS=folder))
	@$(BIN)/python scripts/grade.py "$(SUBMISSIONS)" $(if $(TRUSTED),--trusted)

bench: $(READY) ## print the speed ratios that the text speaks of
	$(BIN)/python scripts/bench.py

.venv-pfl/.ready: scripts/pfl-requirements.txt
	$(PYTHON) -m venv .venv-pfl
	.venv-pfl/bin/python -m pip install -r $< && touch $@ \
		|| echo "pfl-research cannot be installed here: the race goes on without it"

bench-flower: $(READY) .venv-pfl/.ready ## race our simulator, Flower's and pfl-research's
	$(BIN)/python scripts/bench_flower.py

fleet: $(READY) ## train the wardrobe model over three separate processes, with TLS and node keys
	@exec $(BIN)/python -m mlguide.federated.flower.fleet

# In one process, as lines that run in others are not counted. CI asks for the fleet's tests as well.
coverage: export OMP_NUM_THREADS := 1
coverage: export CI := true
coverage: $(READY) ## measure which lines of the package its tests run
	$(BIN)/coverage run -m pytest tests $(GRADED:%=--ignore %) --ignore tests/test_site.py
	$(BIN)/coverage report --show-missing --fail-under 95

# Cosmic Ray brings what nothing else here needs.
.venv-mutate/.ready:
	$(PYTHON) -m venv .venv-mutate
	.venv-mutate/bin/python -m pip install cosmic-ray==8.7.0
	@touch $@

mutate: $(READY) .venv-mutate/.ready ## plant faults in the package, print the share that its tests catch (or MODULES=...)
	.venv-mutate/bin/python scripts/mutate.py $(MODULES)

screenshots: $(BUILT) ## picture every page of the built book, light, dark and narrow
	$(BIN)/python scripts/screenshots.py

clean: ## remove what was built (delete .venv as well for a fresh start)
	rm -rf _build .pytest_cache .ruff_cache .hypothesis
