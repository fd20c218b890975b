"""The deliberate faults of `mutations`: each a slip of a programmer that the suite has to notice.

An old text is logic, not a message, and occurs once in its file. If it was rewritten, rewrite the
fault, too; `test_benchmarks` says which one does not fit any more.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A single edit of the package, and the tests that must fail with it.

    Attributes:
        what: What is wrong then, in words.
        file: The file that is edited.
        old: Text that occurs once in it.
        new: What takes its place.
        tests: A file of tests.
        expression: Which of them: see pytest's option `-k`.
    """

    what: str
    file: str
    old: str
    new: str
    tests: str
    expression: str


INDEX, SPLIT, PIXELS = (f"pneumo/data/{it}.py" for it in ("index", "split", "pixels"))
INTERVALS, BOOTSTRAP, METRICS, COMPARISON = (
    f"pneumo/evaluation/{it}.py" for it in ("intervals", "bootstrap", "metrics", "comparison")
)
PROMOTE, REGISTRY = "pneumo/commands/promote.py", "pneumo/tracking/registry.py"
DATASET = "pneumo/data/dataset.py"
FEATURES, PIPELINE, TRAIN = (
    f"pneumo/training/{it}.py" for it in ("feature_cache", "input_pipeline", "train")
)
CACHE, ENTRIES, CHECKSUMS, PROCESS = (
    f"pneumo/runtime/{it}.py" for it in ("cache", "cache_entries", "checksums", "process")
)
STORAGE, STUDY, WORKER, SPEC = (
    f"pneumo/tuning/{it}.py" for it in ("storage", "study", "worker", "spec")
)
STUDY_RUNS = "pneumo/tracking/study_runs.py"
ENSEMBLE, SELECTION = (f"pneumo/tuning/{it}.py" for it in ("ensemble", "selection"))
LOGITS = "pneumo/inference/logits.py"

OF_INDEX, OF_SPLIT, OF_PIXELS = (f"tests/data/test_{it}.py" for it in ("index", "split", "pixels"))
OF_INTERVALS, OF_BOOTSTRAP, OF_METRICS, OF_COMPARISON = (
    f"tests/evaluation/test_{it}.py" for it in ("intervals", "bootstrap", "metrics", "comparison")
)
OF_PROMOTE = "tests/commands/test_promote.py"
OF_CHAMPIONS = "tests/tracking/test_champions.py"
OF_FEATURES = "tests/training/test_feature_cache.py"
OF_FOLDS, OF_TRAINING_FOLDS = "tests/data/test_folds.py", "tests/training/test_folds.py"
OF_CACHE, OF_ENTRIES, OF_CHECKSUMS, OF_PROCESS = (
    f"tests/runtime/test_{it}.py" for it in ("cache", "cache_entries", "checksums", "process")
)
OF_RECOVERY, OF_OWN_TRIALS, OF_SPEC, OF_WORKER = (
    f"tests/tuning/test_{it}.py" for it in ("recovery", "own_trials", "spec", "worker")
)
OF_ENSEMBLE, OF_WARM_START = (f"tests/tuning/test_{it}.py" for it in ("ensemble", "warm_start"))
OF_DEAD = "tests/end_to_end/test_faults.py"

SPLIT_FAULTS = [
    Fault(
        "the patients of a class are too few for a fifth, and none validates",
        SPLIT,
        "max(1, round(VALIDATION_FRACTION * len(names)))",
        "round(VALIDATION_FRACTION * len(names))",
        OF_SPLIT,
        "of_two_patients_one_validates",
    ),
    Fault(
        "a class of one patient is cut",
        SPLIT,
        "if len(names) < 2:",
        "if len(names) < 1:",
        OF_SPLIT,
        "one_patient_cannot_be_cut",
    ),
    Fault(
        "patients are chosen in the order of their names",
        SPLIT,
        "hashlib.sha256(name.encode()).digest()",
        "name",
        OF_SPLIT,
        "the_choice_is_that_of_earlier_studies",
    ),
    Fault(
        "a patient with images of both classes counts as normal",
        SPLIT,
        'rows["label"].groupby(groups).max()',
        'rows["label"].groupby(groups).min()',
        OF_SPLIT,
        "one_of_both_classes_counts_as_pneumonia",
    ),
    Fault(
        "the chosen patients train and the others validate",
        SPLIT,
        'rows["split"].mask(is_val, "val")',
        'rows["split"].where(is_val, "val")',
        OF_SPLIT,
        "the_choice_is_that_of_earlier_studies",
    ),
    Fault(
        "test patients are chosen for validation",
        SPLIT,
        'train = rows[rows["split"] == "train"]',
        'train = rows[rows["split"] != "val"]',
        OF_SPLIT,
        "test_stays_as_it_was",
    ),
    Fault(
        "patients who share a file are not grouped",
        SPLIT,
        'names.groupby(rows["sha256"])',
        'names.groupby(rows["path"])',
        OF_SPLIT,
        "patients_who_share_a_file_are_on_one_side",
    ),
    Fault(
        "of patients who share a file one alone validates",
        SPLIT,
        "rows.index.isin(train.index[groups.isin(chosen_patients)])",
        'rows["patient"].isin(chosen_patients)',
        OF_SPLIT,
        "all_validate_or_none",
    ),
    Fault(
        "a copy in train and in test is no conflict",
        SPLIT,
        "rows[values > 1]",
        "rows[values > 2]",
        OF_SPLIT,
        "a_copy_is_called_a_copy",
    ),
    Fault(
        "a file name without a patient is a patient of both splits",
        SPLIT,
        "known = rows[~has_unknown_patient(rows)]",
        "known = rows",
        OF_SPLIT,
        "same_name_without_a_patient",
    ),
    Fault(
        "a patient whose test images cannot be read is in both splits",
        SPLIT,
        "if all(first_images):",
        "if any(first_images):",
        OF_SPLIT,
        "only_images_that_can_be_read",
    ),
    Fault(
        "the counters of bacteria and virus give one patient",
        INDEX,
        "(match[0] if match else file_name)",
        '(match[0].partition("_")[0] if match else file_name)',
        OF_INDEX,
        "patients_are_distinguished_by_four_counters",
    ),
    Fault(
        "a patient is found in the middle of a name",
        INDEX,
        "match = PATIENT_PATTERN.match(file_name)",
        "match = PATIENT_PATTERN.search(file_name)",
        OF_INDEX,
        "patients_are_distinguished_by_four_counters",
    ),
    Fault(
        "with another list of patients the digest of a data set stays the same",
        INDEX,
        '["path", "label", "patient", "split", "sha256"]]',
        '["path", "label", "split", "sha256"]]',
        OF_INDEX,
        "the_digest_follows_each_column",
    ),
    Fault(
        "with five folds the first one is not the validation split",
        SPLIT,
        "round(number * len(names) / n_folds)",
        "round(number * len(names) / n_folds + 1)",
        OF_FOLDS,
        "first_of_five",
    ),
    Fault(
        "test images are in a fold",
        SPLIT,
        "folds.reindex(rows.index, fill_value=-1)",
        "folds.reindex(rows.index, fill_value=0)",
        OF_FOLDS,
        "each_patient_is_in_one_fold",
    ),
    Fault(
        "more folds than patients are accepted",
        SPLIT,
        "len(names) < n_folds:",
        "len(names) < n_folds - 1:",
        OF_FOLDS,
        "more_folds_than_patients",
    ),
    Fault(
        "an image is trained on in the fold that it validates",
        DATASET,
        "Subset(pool, np.flatnonzero(~row))",
        "Subset(pool, np.arange(len(row)))",
        OF_FOLDS,
        "validates_once",
    ),
    Fault(
        "a fold without a class is accepted",
        DATASET,
        'self._readable & (numbers == number), f"fold',
        '(numbers == number), f"fold',
        OF_FOLDS,
        "without_readable_images",
    ),
    Fault(
        "logits are stored for the images that trained the network",
        TRAIN,
        "rows, labels = fold.val.indices, fold.val.labels",
        "labels = fold.val.labels; rows = fold.train.indices[: len(labels)]",
        OF_TRAINING_FOLDS,
        "own_networks",
    ),
    Fault(
        "each fold starts from the same seed",
        TRAIN,
        "derive_seed(config.seed, number) if number else config.seed",
        "config.seed",
        OF_TRAINING_FOLDS,
        "memorized",
    ),
    Fault(
        "finished folds do not count in the score",
        WORKER,
        "fmean([*finished, score])",
        "score",
        OF_WORKER,
        "reports_the_mean",
    ),
    Fault(
        "the features of other rows validate",
        PIPELINE,
        "val.select(features.get(View(val.split), depth))",
        "features.get(View(val.split), depth)[: len(val.indices)]",
        OF_TRAINING_FOLDS,
        "stored_or_not",
    ),
    Fault(
        "the features of other rows are trained on",
        PIPELINE,
        "self._current_features[self.train.indices[positions]]",
        "self._current_features[positions]",
        OF_TRAINING_FOLDS,
        "stored_or_not",
    ),
]

INTERVAL_FAULTS = [
    Fault(
        "a proportion's lower bound lacks a miss",
        INTERVALS,
        "np.where(value > 0, hits_of_size, 1), misses_of_size + 1)",
        "np.where(value > 0, hits_of_size, 1), misses_of_size)",
        OF_INTERVALS,
        "of_one_image_for_each_patient_is_exact",
    ),
    Fault(
        "the variance between patients lacks the correction for their number",
        INTERVALS,
        "n_clusters / (n_clusters - 1) * (deviation**2)",
        "(deviation**2)",
        OF_INTERVALS,
        "test_a_proportion_by_hand",
    ),
    Fault(
        "the smaller design effect counts",
        INTERVALS,
        "np.maximum(variance / independent, min_effect)",
        "np.minimum(variance / independent, min_effect)",
        OF_INTERVALS,
        "test_a_proportion_by_hand",
    ),
    Fault(
        "the degrees of freedom widen an interval the wrong way round",
        INTERVALS,
        "_t_quantile(np.maximum(total, 2) - 1) / _t_quantile(n_clusters - 1)",
        "_t_quantile(n_clusters - 1) / _t_quantile(np.maximum(total, 2) - 1)",
        OF_INTERVALS,
        "test_a_proportion_by_hand",
    ),
    Fault(
        "the usual and the least correlation are swapped",
        INTERVALS,
        "np.where(is_inner, MIN_ICC, ASSUMED_ICC)",
        "np.where(is_inner, ASSUMED_ICC, MIN_ICC)",
        OF_INTERVALS,
        "test_all_hits_by_hand",
    ),
    Fault(
        "each image counts as a patient",
        INTERVALS,
        'patients = pd.factorize(predictions["patient"])[0]',
        "patients = np.arange(len(predictions))",
        OF_INTERVALS,
        "more_images_of_the_same_patients",
    ),
    Fault(
        "the ends of the two intervals of a difference are swapped",
        INTERVALS,
        "((ends[0][1], ends[1][0]), (ends[0][0], ends[1][1]))",
        "((ends[0][0], ends[1][1]), (ends[0][1], ends[1][0]))",
        OF_INTERVALS,
        "test_a_paired_difference_by_hand",
    ),
    Fault(
        "the correlation of a pair has the wrong sign",
        INTERVALS,
        "of_first**2 - 2 * correlation",
        "of_first**2 + 2 * correlation",
        OF_INTERVALS,
        "test_a_paired_difference_by_hand",
    ),
    Fault(
        "a pair's deviations do not regard how many images a patient has",
        INTERVALS,
        "hits - values[-1] * images)",
        "hits - values[-1])",
        OF_INTERVALS,
        "patients_with_several_images_by_hand",
    ),
    Fault(
        "the variance of the area lacks the correction for the patients",
        INTERVALS,
        "np.sqrt(count / (count - 1))",
        "1.0",
        OF_INTERVALS,
        "test_an_area_by_hand",
    ),
    Fault(
        "the class with more patients gives the degrees of freedom",
        INTERVALS,
        "_t_quantile(min(counts) - 1)",
        "_t_quantile(max(counts) - 1)",
        OF_INTERVALS,
        "delongs",
    ),
    Fault(
        "the least variance of the area is that of independent images",
        INTERVALS,
        "effect * share.var(ddof=1) / len(share)",
        "share.var(ddof=1) / len(share)",
        OF_INTERVALS,
        "as_uncertain_as_the_usual_icc",
    ),
    Fault(
        "one pair out of order looks more certain than none",
        INTERVALS,
        "min(low, value, separated)",
        "min(low, value)",
        OF_INTERVALS,
        "one_pair_out_of_order",
    ),
    Fault(
        "samples are of images and not of patients",
        BOOTSTRAP,
        'np.unique(predictions["patient"], return_inverse=True)',
        'np.unique(predictions["path"], return_inverse=True)',
        OF_BOOTSTRAP,
        "patients_come_with_all_their_images",
    ),
    Fault(
        "the bound of the best of many forgets the other trials",
        BOOTSTRAP,
        "np.maximum(largest, excess, out=largest)",
        "np.minimum(largest, excess, out=largest)",
        OF_BOOTSTRAP,
        "the_bound_of_the_best_of_many",
    ),
    Fault(
        "the threshold itself counts as negative",
        METRICS,
        "metrics.confusion_matrix(labels, probabilities >= threshold,",
        "metrics.confusion_matrix(labels, probabilities > threshold,",
        OF_METRICS,
        "the_threshold_itself_counts_as_positive",
    ),
    Fault(
        "a probability of 1 has an interval of its own",
        METRICS,
        "(probabilities * bins).astype(int), bins - 1)",
        "(probabilities * bins).astype(int), bins)",
        OF_METRICS,
        "calibration_error_by_hand",
    ),
]

GATE_FAULTS = [
    Fault(
        "a difference as large as the margin passes",
        COMPARISON,
        "if not low > -margin:",
        "if not low >= -margin:",
        OF_COMPARISON,
        "the_margin_is_the_bound_itself",
    ),
    Fault(
        "the margin of the area holds for sensitivity",
        COMPARISON,
        '("sensitivity", margins.sensitivity)',
        '("sensitivity", margins.auc)',
        OF_COMPARISON,
        "the_margin_is_the_bound_itself",
    ),
    Fault(
        "a metric that is not a number is above the floor",
        COMPARISON,
        "if not metrics[name] >= floor:",
        "if metrics[name] < floor:",
        OF_COMPARISON,
        "a_limit_itself_is_within_it",
    ),
    Fault(
        "a ceiling is a floor",
        COMPARISON,
        "if not metrics[name] <= ceiling:",
        "if not metrics[name] >= ceiling:",
        OF_COMPARISON,
        "miscalibrated_probabilities",
    ),
    Fault(
        "the champion is judged at the threshold of the candidate",
        COMPARISON,
        "thresholds = reference.threshold, self.threshold",
        "thresholds = self.threshold, self.threshold",
        OF_COMPARISON,
        "each_model_is_evaluated_at_its_own_threshold",
    ),
    Fault(
        "champion and candidate are swapped",
        COMPARISON,
        "compare_models(reference.predictions, self.predictions, thresholds)",
        "compare_models(self.predictions, reference.predictions, thresholds)",
        OF_COMPARISON,
        "a_better_one_and_an_equal_one",
    ),
    Fault(
        "synthetic images move a real model if another one is synthetic",
        COMPARISON,
        "if synthetic_images and not all(",
        "if synthetic_images and not any(",
        OF_COMPARISON,
        "synthetic_images_replace_no_real_champion",
    ),
    Fault(
        "a real model cannot follow a demo",
        COMPARISON,
        "if candidate.is_synthetic and not reference.is_synthetic:",
        "if candidate.is_synthetic != reference.is_synthetic:",
        OF_COMPARISON,
        "synthetic_images_replace_no_real_champion",
    ),
    Fault(
        "sensitivity goes before the area when the best champion is sought",
        COMPARISON,
        '("best_", ("auc", "sensitivity"))',
        '("best_", ("sensitivity", "auc"))',
        OF_COMPARISON,
        "the_best_so_far_has_the_greatest_area",
    ),
    Fault(
        "predictions of other patients are a pair",
        BOOTSTRAP,
        'columns = ["path", "patient", "label"]',
        'columns = ["path", "label"]',
        OF_BOOTSTRAP,
        "predictions_are_a_pair",
    ),
    Fault(
        "the difference of the areas has the wrong sign",
        BOOTSTRAP,
        "bootstrap_auc(second, counts) - bootstrap_auc(first, counts), CI_PERCENTILES",
        "bootstrap_auc(first, counts) - bootstrap_auc(second, counts), CI_PERCENTILES",
        OF_BOOTSTRAP,
        "two_models_on_the_same_images",
    ),
    Fault(
        "the candidate is compared with itself as the best champion so far",
        COMPARISON,
        "chosen = [candidate, champion]",
        "chosen = [champion]",
        OF_COMPARISON,
        "a_candidate_is_compared_with_up_to_three_champions",
    ),
    Fault(
        "a vacant champion leaves nothing to compare with",
        COMPARISON,
        "references[prefix] = champions[best]",
        "references = references and {**references, prefix: champions[best]}",
        OF_COMPARISON,
        "a_candidate_is_compared_with_up_to_three_champions",
    ),
    Fault(
        "a champion is replaced that nobody was compared with",
        REGISTRY,
        "if current == champion:",
        "if current >= champion:",
        OF_CHAMPIONS,
        "followed_only_by_who_was_compared",
    ),
    Fault(
        "the last champion but one is forgotten",
        REGISTRY,
        "{version, champion, version_by_alias(model_name, PREVIOUS)} - {0}",
        "{version, champion} - {0}",
        OF_CHAMPIONS,
        "without_a_tag_are_known_by_their_aliases",
    ),
    Fault(
        "only who has an alias has been champion",
        REGISTRY,
        "if number in holders or WAS_CHAMPION in version.tags",
        "if number in holders and WAS_CHAMPION in version.tags",
        OF_CHAMPIONS,
        "stays_known",
    ),
    Fault(
        "a rollback does not look at the files",
        PROMOTE,
        "    models.verify_registered_files(model_name, version)\n",
        "",
        OF_PROMOTE,
        "a_rollback_needs_only_the_files",
    ),
    Fault(
        "a demo follows a real champion that counts as vacant",
        PROMOTE,
        "if vacancy and evaluated_candidate.is_synthetic and not _is_synthetic(",
        "if vacancy and evaluated_candidate.is_synthetic and _is_synthetic(",
        OF_PROMOTE,
        "a_synthetic_model_does_not_replace_a_real_champion",
    ),
]

FEATURE_CACHE_FAULTS = [
    Fault(
        "pixels that were padded are taken for squashed ones",
        PIXELS,
        'return f"{DECODER_VERSION} {size} {resize}"',
        'return f"{DECODER_VERSION} {size}"',
        OF_PIXELS,
        "each_way_to_the_square",
    ),
    Fault(
        "pixels are written over the header",
        PIXELS,
        "start + position * image.size)",
        "position * image.size)",
        OF_PIXELS,
        "each_row_has_its_own_pixels",
    ),
    Fault(
        "all epochs have the same view",
        FEATURES,
        "order[epoch % N_VIEWS]",
        "order[0]",
        "tests/training/test_input_pipeline.py",
        "augmentation_differs_between_epochs_unless and True",
    ),
    Fault(
        "features of other weights are taken for these",
        FEATURES,
        '            "weights": self._extractor.digest(depth),\n',
        "",
        OF_FEATURES,
        "weights_above_the_cut_do_not_count",
    ),
    Fault(
        "weights above the cut are part of the key",
        FEATURES,
        "for block in self._blocks[: len(self._blocks) - depth]:",
        "for block in self._blocks:",
        OF_FEATURES,
        "weights_above_the_cut_do_not_count",
    ),
    Fault(
        "features of other images are taken for these",
        FEATURES,
        "view.split.pixels[..., np.newaxis], view.split.positions",
        "view.split.pixels[..., np.newaxis], np.arange(len(chance))",
        OF_FEATURES,
        "what_is_stored_is_what_the_network_gives and 0-0",
    ),
    Fault(
        "the deepest cut is not kept",
        FEATURES,
        "if depth < self._max_unfreeze_depth:",
        "if depth > self._max_unfreeze_depth:",
        OF_FEATURES,
        "is_kept_at_the_deepest_cut_too",
    ),
    Fault(
        "cuts pay that do not",
        FEATURES,
        ">= WORTH_A_BYTE * self._extractor.feature_bytes(",
        "<= WORTH_A_BYTE * self._extractor.feature_bytes(",
        OF_FEATURES,
        "only_cuts_that_save_more and cnn",
    ),
    Fault(
        "a damaged entry is believed",
        CACHE,
        "if hold(folder) and (not verify or is_intact(folder)):",
        "if hold(folder):",
        OF_CHECKSUMS,
        "what_was_changed_is_built_again_once and truncate and pixels",
    ),
    Fault(
        "an entry has no checksums",
        CACHE,
        "        if verify:\n            seal(draft)\n",
        "",
        OF_CACHE,
        "has_its_name_when_all_of_it_is_on_the_disk",
    ),
    Fault(
        "the name of an entry is not flushed to the disk",
        CACHE,
        "        sync(folder.parent)\n",
        "",
        OF_CACHE,
        "has_its_name_when_all_of_it_is_on_the_disk",
    ),
    Fault(
        "the files of an entry are not flushed to the disk",
        CHECKSUMS,
        "for path in (*files, *{file.parent for file in files}):",
        "for path in {file.parent for file in files}:",
        OF_CACHE,
        "has_its_name_when_all_of_it_is_on_the_disk",
    ),
    Fault(
        "a write that was cut short goes on at the old place",
        CACHE,
        "data, offset = data[written:], offset + written",
        "data = data[written:]",
        OF_CACHE,
        "a_write_that_is_cut_short",
    ),
    Fault(
        "a build in a folder that was deleted is published",
        CACHE,
        "        mark.unlink()\n",
        "        mark.unlink(missing_ok=True)\n",
        OF_CACHE,
        "a_cache_deleted_during_use",
    ),
    Fault(
        "the most recently used goes first",
        ENTRIES,
        "in sorted(rows)}",
        "in sorted(rows, reverse=True)}",
        OF_ENTRIES,
        "the_least_recently_used_entry_of_all_kinds",
    ),
    Fault(
        "an entry that another process uses is removed",
        ENTRIES,
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        OF_ENTRIES,
        "what_a_living_process_uses_stays",
    ),
]

RECOVERY_FAULTS = [
    Fault(
        "a process id that was reused is the old process",
        PROCESS,
        "return _start_time(self.pid) == self.start_time",
        "return bool(_start_time(self.pid))",
        OF_DEAD,
        "on_sqlite_a_trial_without_a_living_process",
    ),
    Fault(
        "all processes have the same start",
        PROCESS,
        "else fields[18]",
        "else fields[17]",
        OF_PROCESS,
        "began_later",
    ),
    Fault(
        "a process of an earlier boot may live",
        PROCESS,
        "(self.boot_id, self.pid_namespace) != current",
        "self.pid_namespace != current[1]",
        OF_DEAD,
        "on_sqlite_a_trial_without_a_living_process",
    ),
    Fault(
        "processes of other machines are declared dead",
        STUDY,
        "return same_machine and not process.is_running()",
        "return same_machine or not process.is_running()",
        OF_DEAD,
        "on_other_databases",
    ),
    Fault(
        "a trial that was just begun is dead",
        STUDY,
        "total_seconds() > MAX_UNCLAIMED_SECONDS",
        "total_seconds() < MAX_UNCLAIMED_SECONDS",
        OF_DEAD,
        "an_unclaimed_trial_is_dead",
    ),
    Fault(
        "of two runs of a trial the one with its params is deleted",
        STUDY_RUNS,
        "key=lambda run: len(run.data.params))",
        "key=lambda run: -len(run.data.params))",
        OF_DEAD,
        "a_trial_has_one_run",
    ),
    Fault(
        "a run that a person has deleted comes back",
        STUDY_RUNS,
        'if not runs[number] and state == "FAIL":',
        'if not found and state == "FAIL":',
        OF_DEAD,
        "a_trial_has_one_run",
    ),
    Fault(
        "a run that says COMPLETE stays though its trial has failed",
        STUDY_RUNS,
        "(kept.data.tags.get(STATE), _is_terminated(kept)) != (state, True)",
        "not _is_terminated(kept)",
        OF_DEAD,
        "runs_agree_with_optuna",
    ),
    Fault(
        "workers of other machines are ended, too",
        STUDY_RUNS,
        "[run for run in running if _process_of(run).machine == machine]",
        "[run for run in running]",
        OF_DEAD,
        "a_machine_without_a_trial",
    ),
    Fault(
        "living workers are ended",
        STUDY_RUNS,
        "elif not _is_terminated(run) and is_dead(_process_of(run)):",
        "elif not _is_terminated(run):",
        OF_DEAD,
        "workers_of_any_experiment",
    ),
    Fault(
        "a failed heartbeat is the last",
        STORAGE,
        "with suppress(StorageInternalError, SQLAlchemyError):",
        "with suppress(StorageInternalError):",
        OF_RECOVERY,
        "a_heartbeat_that_fails",
    ),
    Fault(
        "a stale trial is not asked for again",
        STORAGE,
        "        study.enqueue_trial(enqueued_params)\n",
        "        pass\n",
        OF_RECOVERY,
        "a_stale_trial_is_asked_for_again",
    ),
    Fault(
        "the baseline that was lost is not asked for again",
        STUDY,
        "unfailed_states = (*FINISHED_STATES, TrialState.WAITING, TrialState.RUNNING)",
        "unfailed_states = tuple(TrialState)",
        OF_RECOVERY,
        "first_trials_that_were_lost",
    ),
    Fault(
        "one trial stands for all that are like it",
        STUDY,
        "            known_params.remove(suggestions)\n",
        "            pass\n",
        OF_RECOVERY,
        "first_trials_that_were_lost",
    ),
    Fault(
        "failed trials count as done",
        STUDY,
        "FINISHED_STATES = (TrialState.COMPLETE, TrialState.PRUNED)",
        "FINISHED_STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)",
        OF_RECOVERY,
        "as_many_trials_as_were_asked_for",
    ),
    Fault(
        "a study has a trial too many",
        STUDY,
        "count_finished_trials(study) >= self.trials",
        "count_finished_trials(study) > self.trials",
        OF_RECOVERY,
        "as_many_trials_as_were_asked_for",
    ),
    Fault(
        "failures between which something was done add up",
        STUDY,
        "self._failures + 1 if n_done == self._before else 1",
        "self._failures + 1",
        OF_RECOVERY,
        "the_third_failure",
    ),
    Fault(
        "errors of different kinds are alike",
        STUDY,
        "len(errors) == MAX_CONSECUTIVE_FAILURES and len(types) == 1",
        "len(errors) == MAX_CONSECUTIVE_FAILURES",
        OF_RECOVERY,
        "three_errors_of_a_kind",
    ),
    Fault(
        "a study fails that a person has interrupted",
        STUDY,
        'not types & {"", INTERRUPTED}',
        'not types & {""}',
        OF_RECOVERY,
        "who_interrupts_a_study",
    ),
    Fault(
        "the models of the best trials are deleted",
        STUDY,
        "key=lambda trial: -trial.value)",
        "key=lambda trial: trial.value)",
        OF_RECOVERY,
        "the_models_of_the_best_trials",
    ),
    Fault(
        "a score that did not arrive is lost",
        WORKER,
        "TrialState.FAIL if score is None else TrialState.COMPLETE",
        "TrialState.FAIL",
        OF_OWN_TRIALS,
        "a_score_that_did_not_arrive",
    ),
    Fault(
        "the trials of other processes are ended",
        WORKER,
        "if tuple(attributes.PROCESS.get(trial, ())) == ProcessId.current():",
        "if attributes.PROCESS.get(trial, ()):",
        OF_OWN_TRIALS,
        "a_score_that_did_not_arrive",
    ),
    Fault(
        "a study that goes on repeats its first suggestions",
        SPEC,
        "self._tpe = self._fresh(trial.number)",
        "self._tpe = self._fresh(0)",
        OF_SPEC,
        "three_and_three_trials_equal_six",
    ),
    Fault(
        "all trials train from one seed",
        SPEC,
        'unchanged["seed"] = derive_seed(self.base.seed, trial.number)',
        'unchanged["seed"] = derive_seed(self.base.seed, 0)',
        OF_SPEC,
        "each_trial_trains_from_a_seed_of_its_own",
    ),
]

SELECTION_FAULTS = [
    Fault(
        "an ensemble keeps members that do not help",
        ENSEMBLE,
        "return members[: int(np.argmax(history)) + 1]",
        "return members",
        OF_ENSEMBLE,
        "nothing_is_added_that_does_not_help",
    ),
    Fault(
        "a step adds the candidate that is the best alone",
        ENSEMBLE,
        "scores = candidates.scores(sums)",
        "scores = candidates.scores(candidates.logits)",
        OF_ENSEMBLE,
        "each_step_adds_the_candidate_that_helps_the_most",
    ),
    Fault(
        "the gain is that on the patients by whom the members were selected",
        ENSEMBLE,
        "others = candidates.of_images(np.flatnonzero(counts == 0))",
        "others = sample",
        OF_ENSEMBLE,
        "equally_good_trials_is_corrected",
    ),
    Fault(
        "scores of several folds are pooled",
        ENSEMBLE,
        "for fold in np.unique(self.folds):\n            chosen = self.folds == fold",
        "for fold in (0,):\n            chosen = self.folds >= fold",
        OF_ENSEMBLE,
        "scores_are_the_objective_in_the_mean_over_folds",
    ),
    Fault(
        "the worse pairing does not count",
        ENSEMBLE,
        "aucs.append(np.min([_auc",
        "aucs.append(np.mean([_auc",
        OF_ENSEMBLE,
        "scores_are_the_objective_in_the_mean_over_folds",
    ),
    Fault(
        "a member that is selected twice counts once",
        LOGITS,
        "for logit in [member(view) for view in views] * member_weight(member)",
        "for logit in [member(view) for view in views]",
        OF_ENSEMBLE,
        "a_model_that_is_listed_twice_counts_twice",
    ),
    Fault(
        "heat maps ignore the weights of members",
        "pneumo/evaluation/heat_maps.py",
        "weight * _contributions(images, *parts)",
        "_contributions(images, *parts)",
        "tests/evaluation/test_heat_maps.py",
        "heat_maps_of_an_ensemble_combine_its_members",
    ),
    Fault(
        "a warm start tries the same values twice",
        SELECTION,
        "params not in [baseline, *found.params]",
        "params != baseline",
        OF_WARM_START,
        "best_distinct_trials_that_fit",
    ),
    Fault(
        "a warm start leaves the search space",
        SELECTION,
        "    except ValueError:\n        return False",
        "    except ValueError:\n        return True",
        OF_WARM_START,
        "best_distinct_trials_that_fit",
    ),
    Fault(
        "a lost trial of a warm start stays lost",
        STUDY,
        'spec.initial_params() + warm_start.get("params", [])',
        "spec.initial_params()",
        OF_WARM_START,
        "a_lost_trial_of_a_warm_start",
    ),
]

FAULTS = {
    "split": SPLIT_FAULTS,
    "intervals": INTERVAL_FAULTS,
    "gate": GATE_FAULTS,
    "feature cache": FEATURE_CACHE_FAULTS,
    "study recovery": RECOVERY_FAULTS,
    "selection among trials": SELECTION_FAULTS,
}
