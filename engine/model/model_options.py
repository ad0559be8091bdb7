"""The options of a model, the sizes that come from its data, and which parameters a query mapping freezes."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from atlasvi.engine.model.likelihoods import LIKELIHOODS, Likelihood, LikelihoodName

Dispersion = Literal["gene", "gene-batch", "gene-label", "gene-cell"]
Where = Literal["none", "encoder", "decoder", "both"]


class ModelOptions(BaseModel):
    """The options of scvi-tools' SCVI, by the same names; the defaults are those of the Tabula Sapiens model card."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    n_hidden: int = Field(default=128, ge=1)
    n_latent: int = Field(default=20, ge=1)
    n_layers: int = Field(default=3, ge=1)
    """Number of hidden layers of the encoder, and of the decoder."""
    dropout_rate: float = Field(default=0.05, ge=0, lt=1)
    """Dropout rate of the encoder; the decoder has no dropout."""
    gene_likelihood: LikelihoodName = "nb"
    dispersion: Dispersion = "gene"
    """Whether there is one inverse dispersion per gene, or one per gene and batch, label or cell (decoded from z). For
    the normal likelihood it is the standard deviation; the Poisson has none."""
    latent_distribution: Literal["normal", "ln"] = "normal"
    """normal, or ln: z is the softmax of a normal variable."""
    use_observed_lib_size: bool = True
    """False: the library size is latent, with a log-normal prior for each batch. A size factor replaces either."""
    log_variational: bool = True
    """True: the encoder's input is log1p of the counts; False: the counts."""
    encode_covariates: bool = True
    """Whether the covariates are inputs of the encoder too, and not only of the decoder."""
    deeply_inject_covariates: bool = True
    """Whether the categorical covariates are inputs of every layer, and not only of the first."""
    batch_representation: Literal["one-hot", "embedding"] = "one-hot"
    embedding_dim: int = Field(default=5, ge=1)
    """Length of a batch's vector where batches are embedded."""
    var_activation: Literal["exp", "softplus"] = "exp"
    """The function that makes the variances of q(z | x) and of a latent library positive."""
    use_batch_norm: Where = "none"
    use_layer_norm: Where = "both"
    """Which layers have batch norm. Where a layer has both norms, batch norm comes first."""

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood of the counts."""
        return LIKELIHOODS[self.gene_likelihood]

    @property
    def uses_labels(self) -> bool:
        """Whether the model needs the label of each cell."""
        return self.dispersion == "gene-label"


class ModelSettings(ModelOptions):
    """A model's options and the sizes that come from its data."""

    n_genes: int = Field(ge=1)
    n_batches: int = Field(default=1, ge=1)
    """Number of batches to correct for; 1: no correction."""
    n_labels: int = Field(default=1, ge=1)
    """Number of cell labels, which only the dispersion gene-label uses."""
    n_categories: tuple[int, ...] = ()
    """Number of categories of each further categorical covariate."""
    n_continuous: int = Field(default=0, ge=0)
    """Number of continuous covariates."""
    use_size_factor: bool = False
    """The mean is size factor * softplus(logits) instead of library size * softmax(logits)."""

    @model_validator(mode="after")
    def _check_categories(self) -> Self:
        if any(n < 1 for n in self.n_categories):
            raise ValueError("a categorical covariate has at least one category")
        return self

    @property
    def has_latent_library(self) -> bool:
        """Whether the library size is inferred."""
        return not self.use_observed_lib_size and not self.use_size_factor

    @property
    def embeds_batch(self) -> bool:
        """Whether batches are embedded: a vector of numbers for each, concatenated to the input of the first layers."""
        return self.batch_representation == "embedding"

    @property
    def n_numbers(self) -> int:
        """Numbers concatenated to the input of the first layers: continuous covariates, then the batch's embedding."""
        return self.n_continuous + (self.embedding_dim if self.embeds_batch else 0)

    @property
    def theta_rows(self) -> int:
        """Rows of the table of dispersions: one, or one per batch or label; 0 if there is no table."""
        if not self.likelihood.has_dispersion or self.dispersion == "gene-cell":
            return 0
        return {"gene-batch": self.n_batches, "gene-label": self.n_labels}.get(self.dispersion, 1)

    @property
    def decodes_theta(self) -> bool:
        """Whether the decoder outputs a dispersion for each cell and gene."""
        return self.dispersion == "gene-cell" and self.likelihood.has_dispersion


class Freezing(BaseModel):
    """scvi-tools' options of load_query_data, and the number of categories of the reference.

    By default these parameters are trained: the columns of new categories, scale and shift of the decoder's batch norm,
    the embeddings of new batches, the encoder of a latent library. All others are frozen. As in scvi-tools, the model
    stays in evaluation mode while it trains: batch norms use the running statistics of the reference, and there is no
    dropout. With the statistics of a minibatch from a single batch, subtracting the mean would cancel that batch's
    column, which could then not be learned.

    unfrozen                    freeze no parameter
    freeze_dropout              has no effect, since there is no dropout
    freeze_expression           False: the first layer of the encoder is trained too
    freeze_decoder_first_layer  False: the first layer of the decoder is trained too
    freeze_batchnorm_encoder, freeze_batchnorm_decoder  whether scale and shift of the batch norms are frozen
    n_batches, n_categories     of the reference: their columns in the encoder are frozen, so that its latents stay
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    unfrozen: bool = False
    freeze_dropout: bool = False
    freeze_expression: bool = True
    freeze_decoder_first_layer: bool = True
    freeze_batchnorm_encoder: bool = True
    freeze_batchnorm_decoder: bool = False
    n_batches: int = 1
    n_categories: tuple[int, ...] = ()
