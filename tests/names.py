"""The public names that the library promises, by module."""

from __future__ import annotations

FUNCTIONAL = {
    "torch": (
        "cross_entropy", "nll_loss", "linear_cross_entropy", "kl_div", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss",
        "binary_cross_entropy", "binary_cross_entropy_with_logits", "poisson_nll_loss", "gaussian_nll_loss", "hinge_embedding_loss",
        "margin_ranking_loss", "cosine_embedding_loss", "soft_margin_loss", "multi_margin_loss", "multilabel_margin_loss",
        "multilabel_soft_margin_loss", "triplet_margin_loss", "triplet_margin_with_distance_loss",
    ),
    "logits": (
        "softmax_focal_loss", "stablemax_cross_entropy", "distillation_loss", "linear_distillation_loss", "js_divergence", "generalized_jsd",
        "total_variation",
    ),
    "regression": (
        "log_cosh_loss", "quantile_loss", "mape_loss", "smape_loss", "mase_loss", "msle_loss", "wing_loss", "charbonnier_loss",
        "affine_invariant_loss",
    ),
    "binary and multi-label": (
        "sigmoid_focal_loss", "hinge_loss", "squared_hinge_loss", "brier_loss", "brier_score_loss", "spiegelhalter_z_loss",
        "spiegelhalter_z_statistic", "calibration_loss", "capsule_margin_loss", "analyze_margin_loss_components",
        "class_balanced_weights", "categorical_focal_loss",
    ),
    "metric as loss": ("anyloss", "soft_confusion_matrix"),
    "information": (
        "decoupled_information_loss", "focal_uncertainty_loss", "goodhart_aware_loss", "analyze_decoupled_information_loss",
        "analyze_focal_uncertainty_loss", "analyze_goodhart_aware_loss",
    ),
    "segmentation": (
        "dice_loss", "generalized_dice_loss", "jaccard_loss", "tversky_loss", "focal_tversky_loss", "combo_loss", "dice_ce_loss",
        "dice_focal_loss", "lovasz_hinge_loss", "lovasz_softmax_loss", "boundary_loss", "hausdorff_dt_loss",
    ),
    "boxes": ("box_iou_loss", "generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss", "pairwise_box_iou"),
    "contrastive": (
        "info_nce_loss", "nt_xent_loss", "clip_loss", "siglip_loss", "sup_con_loss", "multiple_negatives_ranking_loss", "margin_mse_loss",
        "cosine_similarity_loss", "cosent_loss", "angle_loss", "contrastive_loss", "batch_hard_triplet_loss",
    ),
    "self-supervised": (
        "vicreg_loss", "barlow_twins_loss", "dino_loss", "ibot_patch_loss", "koleo_loss", "byol_loss", "simsiam_loss", "dcl_loss",
        "sinkhorn_knopp",
    ),
    "generative": ("vae_elbo_loss", "gaussian_kl_loss", "wasserstein_loss", "wasserstein_divergence", "compute_gradient_penalty"),
    "language models": ("nano_vlm_loss", "hrm_loss"),
    "detection": (
        "dfl_loss", "yolov12_detection_loss", "yolov12_multitask_loss", "dice_focal_segmentation_loss", "classification_focal_loss",
    ),
    "structure": ("clustering_loss", "clustering_metrics", "feature_alignment_loss"),
}

# Names of torch.nn whose modules are ours too.
MODULES = (
    "CrossEntropyLoss", "NLLLoss", "LinearCrossEntropyLoss", "KLDivLoss", "MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss", "BCELoss",
    "BCEWithLogitsLoss", "PoissonNLLLoss", "GaussianNLLLoss", "HingeEmbeddingLoss", "MarginRankingLoss", "CosineEmbeddingLoss",
    "SoftMarginLoss", "MultiMarginLoss", "MultiLabelMarginLoss", "MultiLabelSoftMarginLoss", "TripletMarginLoss",
    "TripletMarginWithDistanceLoss",
)

# Modules of ours that are no loss function's, or hold more than its arguments.
OWN_MODULES = ("DINOLoss", "IBOTPatchLoss", "TaskAlignedAssigner", "UncertaintyWeighting", "YOLOv12MultiTaskLoss")

METRIC = {
    "losses": (
        "AngularLoss", "ArcFaceLoss", "BaseMetricLossFunction", "CircleLoss", "ContrastiveLoss", "CosFaceLoss", "CrossBatchMemory",
        "DynamicSoftMarginLoss", "FastAPLoss", "GenericPairLoss", "GeneralizedLiftedStructureLoss", "HistogramLoss", "InstanceLoss",
        "IntraPairVarianceLoss", "LargeMarginSoftmaxLoss", "LiftedStructureLoss", "ManifoldLoss", "MarginLoss", "MultiSimilarityLoss",
        "MultipleLosses", "NCALoss", "NormalizedSoftmaxLoss", "NPairsLoss", "NTXentLoss", "P2SGradLoss", "PNPLoss", "ProxyAnchorLoss",
        "ProxyNCALoss", "RankedListLoss", "SelfSupervisedLoss", "SignalToNoiseRatioContrastiveLoss", "SmoothAPLoss", "SoftTripleLoss",
        "SphereFaceLoss", "SubCenterArcFaceLoss", "SupConLoss", "ThresholdConsistentMarginLoss", "TripletMarginLoss", "TupletMarginLoss",
        "VICRegLoss", "WeightRegularizerMixin",
    ),
    "distances": ("BaseDistance", "BatchedDistance", "CosineSimilarity", "DotProductSimilarity", "LpDistance", "SNRDistance"),
    "reducers": (
        "AvgNonZeroReducer", "BaseReducer", "ClassWeightedReducer", "DivisorReducer", "DoNothingReducer", "MeanReducer",
        "MultipleReducers", "PerAnchorReducer", "SumReducer", "ThresholdReducer",
    ),
    "regularizers": (
        "BaseRegularizer", "CenterInvariantRegularizer", "LpRegularizer", "RegularFaceRegularizer", "SparseCentersRegularizer",
        "ZeroMeanRegularizer",
    ),
    "miners": (
        "AngularMiner", "BaseMiner", "BatchEasyHardMiner", "BatchHardMiner", "DistanceWeightedMiner", "EmbeddingsAlreadyPackagedAsTriplets",
        "HDCMiner", "MultiSimilarityMiner", "PairMarginMiner", "TripletMarginMiner", "UniformHistogramMiner",
    ),
    "utils": ("common_functions", "distributed", "loss_and_miner_utils"),
    "utils.distributed": ("DistributedLossWrapper", "DistributedMinerWrapper"),
}

COMPAT = {
    "nexus": (
        "BarlowTwinsLoss", "CircleLoss", "ContrastiveLoss", "DiceLoss", "FocalLoss", "InfoNCELoss", "NTXentLoss", "SigmoidContrastiveLoss",
        "TripletLoss", "VICRegLoss", "WeightedFocalLoss", "WingLoss",
    ),
    "finetuner": (
        "LOSSES", "CLIPLoss", "CentroidTripletLoss", "ClassSampler", "CosineSimilarityLoss", "MarginMSELoss", "NTXLoss", "make_loss",
        "make_miner", "make_sampler", "sampler_of",
    ),
    "dl_techniques": (
        "HuberLoss", "SMAPELoss", "smape_metric", "MASELoss", "mase_metric", "MQLoss", "QuantileLoss", "TabMLoss", "BrierScoreLoss",
        "BrierScoreMetric", "SpiegelhalterZLoss", "SpiegelhalterZMetric", "CombinedCalibrationLoss", "AnyLoss", "ApproximationFunction",
        "AccuracyLoss", "F1Loss", "FBetaLoss", "BalancedAccuracyLoss", "GeometricMeanLoss", "PrecisionLoss", "RecallLoss",
        "SpecificityLoss", "YoudenJLoss", "MCCLoss", "CohenKappaLoss", "IoULoss", "DiceLoss", "TverskyLoss", "FocalTverskyLoss",
        "WeightedCrossEntropyWithAnyLoss", "CapsuleMarginLoss", "capsule_margin_loss", "analyze_margin_loss_components",
        "DecoupledInformationLoss", "analyze_decoupled_information_loss", "FocalUncertaintyLoss", "analyze_focal_uncertainty_loss",
        "GoodhartAwareLoss", "analyze_loss_components", "SegmentationLossConfig", "SegmentationLosses", "SegmentationWrapperLoss",
        "create_segmentation_loss_function", "bbox_iou", "AffineInvariantLoss", "ClusteringLoss", "ClusteringMetrics",
        "compute_clustering_metrics", "FeatureAlignmentLoss", "CLIPContrastiveLoss", "SigLIPContrastiveLoss", "AdaptiveSigLIPLoss",
        "HybridContrastiveLoss", "create_siglip_loss", "create_adaptive_siglip_loss", "create_hybrid_loss", "DINOLoss", "iBOTPatchLoss",
        "KoLeoLoss", "NanoVLMLoss", "StableMaxCrossEntropy", "HRMLoss", "create_hrm_loss", "WassersteinLoss",
        "WassersteinGradientPenaltyLoss", "WassersteinDivergence", "compute_gradient_penalty", "create_wgan_losses",
        "create_wgan_gp_losses", "YOLOv12MultiTaskLoss", "create_yolov12_multitask_loss", "create_yolov12_coco_loss",
        "create_yolov12_crack_loss", "DiceFocalSegmentationLoss", "ClassificationFocalLoss",
    ),
    "pytorch_metric_learning": ("losses", "distances", "reducers", "regularizers", "miners", "utils"),
    "monai": (
        "DiceLoss", "DiceCELoss", "DiceFocalLoss", "FocalLoss", "GeneralizedDiceLoss", "TverskyLoss", "MaskedDiceLoss",
        "HausdorffDTLoss",
    ),
    "smp": ("DiceLoss", "JaccardLoss", "TverskyLoss", "FocalLoss", "LovaszLoss", "SoftBCEWithLogitsLoss", "SoftCrossEntropyLoss"),
    "torchvision": (
        "sigmoid_focal_loss", "generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss", "box_iou",
        "generalized_box_iou", "distance_box_iou", "complete_box_iou",
    ),
    "fvcore": ("sigmoid_focal_loss", "sigmoid_focal_loss_star", "giou_loss", "diou_loss", "ciou_loss"),
    "kornia": ("DiceLoss", "TverskyLoss", "FocalLoss", "BinaryFocalLossWithLogits", "LovaszHingeLoss", "LovaszSoftmaxLoss"),
    "open_clip": ("ClipLoss", "SigLipLoss"),
    "lightly": ("NTXentLoss", "VICRegLoss", "BarlowTwinsLoss", "DINOLoss", "IBOTPatchLoss", "KoLeoLoss", "DCLLoss", "DCLWLoss"),
    "sentence_transformers": (
        "AnglELoss", "BatchAllTripletLoss", "BatchHardSoftMarginTripletLoss", "BatchHardTripletLoss", "BatchSemiHardTripletLoss",
        "CoSENTLoss", "ContrastiveLoss", "CosineSimilarityLoss", "DistillKLDivLoss", "GISTEmbedLoss", "GlobalOrthogonalRegularizationLoss",
        "MarginMSELoss", "MegaBatchMarginLoss", "MultipleNegativesRankingLoss", "MultipleNegativesSymmetricRankingLoss",
        "OnlineContrastiveLoss", "TripletLoss",
    ),
    "flash_attn": ("CrossEntropyLoss", "cross_entropy_loss"),
    "cut_cross_entropy": ("linear_cross_entropy", "LinearCrossEntropy"),
    "liger_kernel": ("LigerCrossEntropyLoss", "LigerFusedLinearCrossEntropyLoss"),
    "apex": ("SoftmaxCrossEntropyLoss",),
}
